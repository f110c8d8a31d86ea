"""Replays of the reference's recorded rollouts, through the classes that make videos (`verify.py` compares)."""

from typing import cast

import torch
from torch import Tensor

from ..config import Positions, RolloutConfig
from ..model import rope
from ..model.causal import CausalWan, TextKeys
from ..model.wan import WanModel
from ..rollout.kv_cache import UnboundedLayerKVCache
from ..rollout.rollout import Pass, PassKind, Rollout
from ..weights.load import build_model
from ..weights.lora import Lora
from ..weights.weights_file import WeightsFile, normalise_names, read_weights_file
from .recorded_run import RecordedRun, compute_statistic, stack_rows, unwarp_steps


def replay_rollout(run: RecordedRun) -> dict[str, Tensor]:
    """Replay a rollout with its switches: every pass of the network, the latents, the KV cache at the end."""
    replay = _RolloutReplay(run)
    for block in range(run.read_number("frames") // run.read_number("block")):
        replay.make_block(block)
    return replay.collect_results()


class _RolloutReplay:
    """A recorded rollout during its replay."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        lora = _read_lora(run)
        model = load_recorded_network(run, lora)
        targets = [f"{module}.weight" for module in lora.pairs] if lora else []
        self.merged = {key: cast(WanModel, model.tree).get_parameter(key) for key in targets}
        self.config = _read_config(run)
        noise = run.tensors["in.noise"]
        self.rollout = Rollout(
            model, self.config, (noise.shape[0], *noise.shape[2:]), watch=self._watch, exhaustive=True
        )
        self.texts = read_texts(run, model)
        self.switches = run.read_values("switch_frames") if "switch_frames" in run.meta else []
        self.renew = run.meta.get("global_sink") == "false"
        self.segment = 0
        self.latents: list[Tensor] = []
        self.rows: dict[str, list] = {}

    def make_block(self, block: int) -> None:
        """Make one block. As in the reference, it switches if it begins at the frame of the next switch or later."""
        start = block * self.config.block
        if self.segment < len(self.switches) and start >= self.switches[self.segment]:
            self.segment += 1
            if start:
                past = torch.cat(self.latents, 1)
                self.rollout.recache(start, past, self.texts[self.segment], renew=self.renew)
        text = self.texts[self.segment]
        clean = self.rollout.denoise(start, text, self._noise, block)
        self.rollout.clean_pass(start, clean, text)
        self.latents.append(clean)

    def _noise(self, block: int, step: int) -> Tensor:
        if step:
            return self.run.tensors["rng.renoise"][block, step - 1]
        return self.run.tensors["in.noise"][:, block * self.config.block : (block + 1) * self.config.block]

    def _watch(self, done: Pass) -> None:
        tokens = self.tokens_per_frame
        end = done.place.start + done.place.frames
        row: dict[str, object] = {
            "kind": done.kind.value,
            "segment": self.segment,
            "num_frames": done.place.frames,
            "timestep": done.timesteps[0],
            "current_start": done.place.start * tokens,
            "gend": end * tokens,
            "lend": min(end, self.config.window) * tokens,
            "flag": int(done.kind is PassKind.RECACHE and self.renew),
            "flow": compute_statistic(done.flow),
            "x0": compute_statistic(done.clean),
        }
        for layer in range(len(self.rollout.cache.layers)):
            k, v = self._read_cache(layer, end)
            row |= {f"k.{layer}": compute_statistic(k), f"v.{layer}": compute_statistic(v)}
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    @property
    def tokens_per_frame(self) -> int:
        return self.rollout.cache.layers[0].k_BSNH.shape[1] // self.config.window

    def _read_cache(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Read a layer's keys and values in the order of time; keys un-rotated where positions are unbounded."""
        cache, tokens = self.rollout.cache.layers[layer], self.tokens_per_frame
        slots = self.rollout.window.list_slots(end)
        k_BSFNH, v_BSFNH = (x.unflatten(1, (-1, tokens))[:, slots] for x in (cache.k_BSNH, cache.v_BSNH))
        k, v = k_BSFNH.flatten(1, 2), v_BSFNH.flatten(1, 2)
        if self.config.positions is Positions.UNBOUNDED:
            k = self._unrotate(k, len(slots), end)
            if isinstance(cache, UnboundedLayerKVCache):
                sink = min(cache.sink_k_BSNH.shape[1], k.shape[1])
                k[:, :sink] = cache.sink_k_BSNH[:, :sink]
        return k, v

    def _unrotate(self, k_BSNH: Tensor, frames: int, end: int) -> Tensor:
        grid = self.rollout.model.geometry.grid(*self.run.tensors["in.noise"].shape[-2:])
        turn = rope.make_table(end - frames, frames, grid, k_BSNH.shape[-1], k_BSNH.device)
        return rope.rotate(k_BSNH, turn.transpose(-1, -2))

    def collect_results(self) -> dict[str, Tensor]:
        found = {"out.latents": torch.cat(self.latents, 1)}
        found |= {f"trace.{name}": column for name, column in stack_rows(self.rows).items()}
        frames = sum(latents.shape[1] for latents in self.latents)
        for layer, cache in enumerate(self.rollout.cache.layers):
            for name, full, part in zip(
                "kv", (cache.k_BSNH, cache.v_BSNH), self._read_cache(layer, frames), strict=True
            ):
                found[f"out.{name}.{layer}"] = torch.nn.functional.pad(
                    part, (0, 0, 0, 0, 0, full.shape[1] - part.shape[1])
                )
        for key, weight in self.merged.items():
            found |= {f"merged.{key}": weight, f"merged_stats.{key}": compute_statistic(weight)}
        return found


def load_recorded_network(run: RecordedRun, lora: Lora | None = None) -> CausalWan:
    """Load the weights of a run, with an adapter merged if one is given."""
    geometry, weights = run.read_geometry(), read_weights_file(run.find_beside("weights"))
    stated = weights.stating(num_heads=geometry["num_heads"], text_len=geometry["text_len"])
    tree, _ = build_model(stated, lora=lora)
    return CausalWan.of_tree(tree)


def read_texts(run: RecordedRun, model: CausalWan) -> list[TextKeys]:
    """Read the prompts of a run, in their order."""
    contexts = sorted((name for name in run.tensors if name.startswith("in.ctx")), key=_parse_last_number)
    return [model.read_prompt(run.tensors[name]) for name in contexts]


def _read_lora(run: RecordedRun) -> Lora | None:
    if run.meta["kind"] != "lora":
        return None
    adapter = WeightsFile(
        path=run.path,
        tensors=normalise_names(run.select("lora.")),
        layout="recorded",
        parts=(),
        prefix="lora.",
        metadata={},
        config={},
    )
    return Lora.of_weights_file(adapter, alpha=float(run.meta["alpha"]))


def _read_config(run: RecordedRun) -> RolloutConfig:
    shift = float(run.meta["timestep_shift"])
    return RolloutConfig(
        window=run.read_number("window") if run.read_number("window") > 0 else run.read_number("frames"),
        sink=run.read_number("sink"),
        block=run.read_number("block"),
        steps=unwarp_steps(run, shift),
        shift=shift,
        context_noise=float(run.meta["context_noise"]),
        positions=Positions.UNBOUNDED if run.meta["relative_rope"] == "true" else Positions.ABSOLUTE,
    )


def _parse_last_number(name: str) -> int:
    return int(last) if (last := name.rsplit(".", 1)[-1]).isdigit() else 0
