"""Replays of recorded runs of the reference, through the same classes that make videos.

A run is a safetensors file of inputs, random draws and results (`tests/reference/README.md` is the format). A replay
computes every recorded result under its recorded name; a run is reproduced if none is missing and all are near.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cache import UnboundedKVCache
from .config import Positions, RolloutConfig
from .errors import CheckpointError
from .model import rope
from .model.causal import CausalWan, sinusoid
from .model.checkpoint import model_of
from .model.lora import Lora
from .model.vae import Past, StreamingDecoder, WanVAE, cut, decode, encode
from .model.weights import Weights, normalised, read
from .recorded import Run, plain_steps, statistic, traced
from .rollout import Pass, PassKind, Rollout
from .schedule import Schedule, add_noise, clean_from_flow, flow_from_clean
from .tune.recorded import matching, scores, streaming
from .untrusted import brief

# What a replay of senseless tensors ends in: torch refuses shapes and dtypes in each of these ways.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a replay is from its run."""

    difference: float  # largest absolute difference
    where: str  # the tensor it is in
    failures: tuple[str, ...]  # one sentence for each tensor out of tolerance


def verify(path: Path) -> Verdict:
    """Replay the run at `path` and compare. Raises CheckpointError for a file that is no run it can replay."""
    run = Run.open(path)
    kind = run.meta.get("kind")
    if kind not in REPLAYS:
        raise CheckpointError(
            f"{path} is not a run that can be replayed: its kind is {brief(repr(kind))}, "
            f"expected one of {', '.join(REPLAYS)}"
        )
    try:
        return compared(kind, replay(run), run.results)
    except UNFIT as error:
        raise CheckpointError(f"{path} is an incomplete run ({brief(repr(error))}); record it anew") from error


def compared(kind: str, replayed: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> Verdict:
    """How far what was replayed is from what was recorded."""
    largest, where, failures = 0.0, "nothing", []
    for name, recorded in results.items():
        if name not in replayed:
            failures.append(f"{name} is not reproduced")
            continue
        difference, allowed = distance(kind, name, replayed[name], recorded)
        if not difference <= allowed:  # a NaN fails too
            failures.append(f"{name} differs by {difference:.2g}, allowed is {allowed:.2g}")
        absolute = apart(replayed[name], recorded)
        if absolute > largest or absolute != absolute:
            largest, where = absolute, name
    return Verdict(largest, where, tuple(failures))


def replay(run: Run) -> dict[str, Tensor]:
    """Every result of a run, made anew, by its recorded name."""
    kind = run.meta["kind"]
    with torch.set_grad_enabled(kind in LEARNING):
        return REPLAYS[kind](run)


def distance(kind: str, name: str, ours: Tensor, recorded: Tensor) -> tuple[float, float]:
    """The difference of two tensors and what is allowed: absolute, relative or in rounding steps, by their kind."""
    if ours.shape != recorded.shape or (ours.dtype != recorded.dtype and not recorded.is_floating_point()):
        return float("inf"), 0.0
    if recorded.dtype is torch.bfloat16:
        return float((_ordinal(ours) - _ordinal(recorded)).abs().max()), 1.0
    a, b = ours.double(), recorded.double()
    difference = (a - b).abs()
    if name == "out.flow_from_x0":
        difference = difference / b.abs().clamp_min(1.0)
    if name.startswith("grad.") or name.endswith(".dx"):
        return float(difference.max()), GRADIENT * float(b.abs().max())
    return float(difference.max()), _tolerance(kind, name, recorded.dtype)


def apart(ours: Tensor, recorded: Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((ours.double() - recorded.double()).abs().max()) if ours.shape == recorded.shape else float("inf")


def _ordinal(x: Tensor) -> Tensor:
    """bfloat16 numbers as integers in their order, so that neighbours differ by one."""
    bits = x.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _tolerance(kind: str, name: str, dtype: torch.dtype) -> float:
    if not dtype.is_floating_point:
        return 0.0
    if dtype is torch.float64 and not name.endswith(".loss"):  # rotary tables, the sinusoid
        return 1e-12
    if name.endswith((".timesteps", ".warped")):
        return 1e-4
    if kind == "vae" and "decode" in name:
        return 2e-5
    if kind == "rope" or name == "out.flow_from_x0" or name.endswith((".sigmas", ".weights")):
        return 1e-6
    return 1e-5


def pipeline(run: Run) -> dict[str, Tensor]:
    """A rollout with its switches: every pass of the network, the latents, the memory at the end."""
    replay = _Pipeline(run)
    for block in range(run.number("frames") // run.number("block")):
        replay.make(block)
    return replay.results()


class _Pipeline:
    """A recorded rollout while it is replayed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        geometry = run.geometry()
        lora = _lora(run)
        tree, _ = model_of(
            read(run.beside("weights")),
            lora=lora,
            num_heads=geometry["num_heads"],
            text_len=geometry["text_len"],
        )
        targets = [f"{module}.weight" for module in lora.pairs] if lora else []
        self.merged = {key: tree.get_parameter(key) for key in targets}
        model = CausalWan.of_tree(tree)
        self.config = _config(run)
        noise = run.tensors["in.noise"]
        self.rollout = Rollout(
            model, self.config, (noise.shape[0], *noise.shape[2:]), watch=self._watch, exhaustive=True
        )
        contexts = sorted((name for name in run.tensors if name.startswith("in.ctx")), key=_last_number)
        self.texts = [model.read(run.tensors[name]) for name in contexts]
        self.switches = run.values("switch_frames") if "switch_frames" in run.meta else []
        self.renew = run.meta.get("global_sink") == "false"
        self.segment = 0
        self.latents: list[Tensor] = []
        self.rows: dict[str, list] = {}

    def make(self, block: int) -> None:
        """One block, by the reference's rule: at most one switch, at the first block at or after its frame."""
        start = block * self.config.block
        if self.segment < len(self.switches) and start >= self.switches[self.segment]:
            self.segment += 1
            if start:
                past = torch.cat(self.latents, 1)
                self.rollout.recache(start, past, self.texts[self.segment], renew=self.renew)
        text = self.texts[self.segment]
        clean = self.rollout.denoise(start, text, self._noise, block)
        self.rollout.commit(start, clean, text)
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
            "timestep": done.timestep,
            "current_start": done.place.start * tokens,
            "gend": end * tokens,
            "lend": min(end, self.config.window) * tokens,
            "flag": int(done.kind is PassKind.RECACHE and self.renew),
            "flow": statistic(done.flow),
            "x0": statistic(done.clean),
        }
        for layer in range(len(self.rollout.memory.layers)):
            k, v = self._remembered(layer, end)
            row |= {f"k.{layer}": statistic(k), f"v.{layer}": statistic(v)}
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    @property
    def tokens_per_frame(self) -> int:
        return self.rollout.memory.layers[0].k_BSNH.shape[1] // self.config.window

    def _remembered(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values in the order of time; keys un-rotated where positions are unbounded."""
        cache, tokens = self.rollout.memory.layers[layer], self.tokens_per_frame
        slots = self.rollout.window.frames_in_order(end)
        k_BSFNH, v_BSFNH = (x.unflatten(1, (-1, tokens))[:, slots] for x in (cache.k_BSNH, cache.v_BSNH))
        k, v = k_BSFNH.flatten(1, 2), v_BSFNH.flatten(1, 2)
        if self.config.positions is Positions.UNBOUNDED:
            k = self._unrotated(k, len(slots), end)
            if isinstance(cache, UnboundedKVCache):
                sink = min(cache.sink_k_BSNH.shape[1], k.shape[1])
                k[:, :sink] = cache.sink_k_BSNH[:, :sink]
        return k, v

    def _unrotated(self, k_BSNH: Tensor, frames: int, end: int) -> Tensor:
        grid = self.rollout.model.geometry.grid(*self.run.tensors["in.noise"].shape[-2:])
        turn = rope.table(end - frames, frames, grid, k_BSNH.shape[-1], k_BSNH.device)
        return rope.rotate(k_BSNH, turn.transpose(-1, -2))

    def results(self) -> dict[str, Tensor]:
        found = {"out.latents": torch.cat(self.latents, 1)}
        found |= {f"trace.{name}": column for name, column in traced(self.rows).items()}
        frames = sum(latents.shape[1] for latents in self.latents)
        for layer, cache in enumerate(self.rollout.memory.layers):
            for name, full, part in zip(
                "kv", (cache.k_BSNH, cache.v_BSNH), self._remembered(layer, frames), strict=True
            ):
                found[f"out.{name}.{layer}"] = torch.nn.functional.pad(
                    part, (0, 0, 0, 0, 0, full.shape[1] - part.shape[1])
                )
        for key, weight in self.merged.items():
            found |= {f"merged.{key}": weight, f"merged_stats.{key}": statistic(weight)}
        return found


def _lora(run: Run) -> Lora | None:
    if run.meta["kind"] != "lora":
        return None
    adapter = Weights(
        path=run.path,
        tensors=normalised(run.group("lora.")),
        layout="recorded",
        parts=(),
        prefix="lora.",
        metadata={},
        config={},
    )
    return Lora.of(adapter, alpha=float(run.meta["alpha"]))


def _config(run: Run) -> RolloutConfig:
    shift = float(run.meta["timestep_shift"])
    return RolloutConfig(
        window=run.number("window") if run.number("window") > 0 else run.number("frames"),
        sink=run.number("sink"),
        block=run.number("block"),
        steps=plain_steps(run, shift),
        shift=shift,
        context_noise=float(run.meta["context_noise"]),
        positions=Positions.UNBOUNDED if run.meta["relative_rope"] == "true" else Positions.ABSOLUTE,
    )


def _last_number(name: str) -> int:
    return int(last) if (last := name.rsplit(".", 1)[-1]).isdigit() else 0


def rotations(run: Run) -> dict[str, Tensor]:
    """Rotary tables and rotations, and the timestep sinusoid."""
    frames, rows, columns = run.tensors["in.grid"].tolist()
    grid, found = (rows, columns), {}
    for head_dim in run.values("head_dims"):
        x = run.tensors[f"in.x.{head_dim}"]
        angles = torch.outer(run.tensors["in.rows"].double(), torch.cat(rope.frequencies(head_dim)))
        found[f"freqs.{head_dim}"] = torch.stack([angles.cos(), angles.sin()], -1)

        def turned(x: Tensor, positions: list[int], head_dim: int = head_dim) -> Tensor:
            return rope.rotate(x, torch.cat([rope.table(p, 1, grid, head_dim, x.device) for p in positions]))

        for start in run.values("starts"):
            at = list(range(start, start + frames))
            found[f"out.start{start}.{head_dim}"] = turned(x, at)
            found[f"out.start{start}_bf16.{head_dim}"] = turned(x.bfloat16(), at)
        found[f"out.relative.{head_dim}"] = turned(x, run.tensors["in.relative"].tolist())
        found[f"out.bidir.{head_dim}"] = turned(x, list(range(frames)))
    found["out.sinusoid"] = sinusoid(run.tensors["in.t"], run.number("freq_dim"))
    return found


def schedules(run: Run) -> dict[str, Tensor]:
    """Tables, warped steps, and the three conversions, which were recorded with the first shift."""
    found = {}
    for shift in run.values("shifts"):
        schedule = Schedule(shift)
        found |= {
            f"shift{shift:g}.sigmas": schedule.sigmas,
            f"shift{shift:g}.timesteps": schedule.timesteps,
            f"shift{shift:g}.weights": schedule.weights(),
            f"shift{shift:g}.warped": schedule.warped(tuple(run.values("config_steps"))),
        }
    x, n = run.tensors["in.x"], run.tensors["in.n"]
    sigma = Schedule(run.values("shifts")[0]).sigma(run.tensors["in.t"]).view(-1, *[1] * (x.ndim - 1))
    found["out.flow_from_x0"] = flow_from_clean(x, n, sigma)
    for suffix, dtype in (("", torch.float32), ("_bf16", torch.bfloat16)):
        found[f"out.add_noise{suffix}"] = add_noise(x.to(dtype), n.to(dtype), sigma)
        found[f"out.x0_from_flow{suffix}"] = clean_from_flow(x.to(dtype), n.to(dtype), sigma)
    return found


def vae(run: Run) -> dict[str, Tensor]:
    """Whole, streamed and cut decodes; encodes. What is recorded of the whole decode was not clamped."""
    model, latents = WanVAE.of_weights(run.group("sd.")), run.tensors["in.latent"]
    decoder = StreamingDecoder(model)
    slices = latents.split(run.tensors["in.stream_slices"].tolist(), dim=1)
    chunks = latents.split(run.number("chunk"), dim=1)
    past = Past()
    unclamped = [model.decode_next(piece, past) for piece in cut(latents, begun=False, at_once=latents.shape[1])]
    found = {
        "out.decode_raw": torch.cat(unclamped, 1),
        "out.stream_lengths": torch.tensor([decoder.push(part).shape[1] for part in slices]),
        "out.decode_chunked_tail": torch.cat([decode(model, chunk) for chunk in chunks[1:]], 1),
    }
    pixels_BFCHW = run.tensors["in.pixel"].transpose(1, 2)
    for frames in run.values("encode_frames"):
        found[f"out.encode.{frames}"] = encode(model, pixels_BFCHW[:, :frames])
    return found


REPLAYS: dict[str, Callable[[Run], dict[str, Tensor]]] = {
    "single": pipeline,
    "interactive": pipeline,
    "lora": pipeline,
    "rope": rotations,
    "scheduler": schedules,
    "vae": vae,
    "bidir": scores,
    "dmd_loss": matching,
    "streaming_training": streaming,
}
LEARNING = ("dmd_loss", "streaming_training")  # kinds that record gradients
GRADIENT = 1e-4  # of the largest value of a gradient
