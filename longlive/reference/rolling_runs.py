"""Replays of recorded runs of Rolling Forcing's reference, through the classes that make videos (`verify.py` compares).

The reference also passes the first block of a window clean while it is unfinished, and writes keys of noisy blocks;
both are overwritten before anything reads them. The first is made here, as it was recorded; the second is not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import RolloutConfig
from ..errors import WeightsError
from ..rollout.kv_cache import WindowKVCache
from ..rollout.rolling_rollout import RollingRollout
from ..rollout.rolling_window import RollingWindow
from ..rollout.rollout import Pass, PassKind
from ..rollout.schedule import add_noise
from ..session.in_flight import InFlight, plan_joint_step
from .recorded_run import RecordedRun, compute_statistic, stack_rows, unwarp_steps
from .rollout_runs import load_recorded_network, read_texts

CLIP = 21  # frames of a clip of training; what a window made before its last ones is left out
NOTHING_THERE = -1  # where no sink is attended, and the timestep of no block


def replay_pipeline(run: RecordedRun) -> dict[str, Tensor]:
    """Replay a video of the reference's pipeline. Raises WeightsError for one that records a bug of it."""
    replay = _RollingReplay(run)
    replay.roll_out(passes_unfinished=True)
    return replay.collect_results(torch.cat(replay.finished, dim=1))


def replay_given(run: RecordedRun) -> dict[str, Tensor]:
    """Replay a video behind given blocks, or with switches of the prompt."""
    replay = _RollingReplay(run)
    for given in run.tensors["in.given"].split(replay.block, dim=1) if "in.given" in run.tensors else ():
        replay.finish_block(given)
    replay.roll_out(passes_unfinished=False)
    return replay.collect_results(torch.cat(replay.finished, dim=1))


def replay_blockwise(run: RecordedRun) -> dict[str, Tensor]:
    """Replay a video made block by block, whose clean passes get noise, as half of the training does it."""
    replay = _RollingReplay(run)
    for block in range(replay.num_blocks):
        start = block * replay.block
        clean = replay.rollout.denoise(start, replay.texts[0], replay.draw, block)
        noise = run.tensors["rng.context"][block]
        noisy = add_noise(clean, noise, replay.rollout.steps.context_sigma)
        replay.rollout.clean_pass(start, noisy, replay.texts[0])
        replay.finished.append(clean)
    return replay.collect_results(torch.cat(replay.finished, dim=1))


def replay_training(run: RecordedRun) -> dict[str, Tensor]:
    """Replay a clip of the reference's training: what every L-th window predicted, from a drawn one on."""
    replay = _RollingReplay(run)
    frames, drawn = replay.num_blocks * replay.block, int(run.tensors["rng.exit"])
    clip = torch.zeros_like(run.tensors["in.noise"])

    def keep(window: int, done: Pass) -> None:
        start, end = done.place.start, done.place.start + done.place.frames
        if done.clean is not None and window % len(replay.rollout.steps) == drawn and end > frames - CLIP:
            clip[:, start:end] = done.clean

    replay.roll_out(passes_unfinished=True, keep=keep)
    return replay.collect_results(clip)


class _RollingReplay:
    """A recorded rollout during its replay."""

    def __init__(self, run: RecordedRun) -> None:
        self.run, self.block = run, run.read_number("block")
        shift, window = float(run.meta["timestep_shift"]), run.read_number("window")
        steps = unwarp_steps(run, shift)
        self.num_blocks = run.read_number("frames") // self.block
        _refuse_bugs(run, self.num_blocks, steps, window)
        config = RolloutConfig.roll(
            steps=steps, window=window, shift=shift, context_noise=float(run.meta["context_noise"])
        )
        model = load_recorded_network(run)
        batch, _, _, *cell = run.tensors["in.noise"].shape
        rows, columns = model.geometry.grid(*cell)
        self.tokens = rows * columns
        like = model.make_empty_token(batch)
        kept = RollingWindow(config.sink, run.read_number("cache") - config.sink, window)
        cache = WindowKVCache(config, model.geometry.num_layers, self.tokens, like, window=kept)
        shape = (batch, *run.tensors["in.noise"].shape[2:])
        self.rollout = RollingRollout(model, config, shape, cache=cache, watch=self._watch, exhaustive=True)
        self.texts = read_texts(run, model)
        self.switches = run.read_values("switches") if "switches" in run.meta else []
        self.segment = 0  # index of the prompt
        self.finished: list[Tensor] = []
        self.joint: Pass | None = None  # the newest of them
        self.rows: dict[str, list] = {}

    def roll_out(
        self, *, passes_unfinished: bool, keep: Callable[[int, Pass], object] = lambda window, done: None
    ) -> None:
        """Make all blocks that are not given; `keep` gets the number of each joint pass, and the pass."""
        given, in_flight, window = len(self.finished), None, 0
        noise = self.run.tensors["in.noise"].split(self.block, dim=1)
        while len(self.finished) < self.num_blocks:
            number, begun = len(self.finished), [*in_flight.blocks] if in_flight else []
            step = plan_joint_step(in_flight, len(self.rollout.steps), grows=number + len(begun) < self.num_blocks)
            begun += [noise[number + len(begun)]] if step.enters else []
            self.segment = sum(switch <= window for switch in self.switches)
            text, start = self.texts[self.segment], number * self.block
            blocks = self.rollout.roll(start, begun, step.level, text, self.draw, number - given)
            joint = self.joint
            assert joint
            assert joint.clean is not None
            keep(window, joint)
            if step.finishes:
                self.finish_block(blocks.pop(0))
            elif passes_unfinished:
                self.rollout.clean_pass(start, joint.clean[:, : self.block], text)
            in_flight, window = InFlight(tuple(blocks), step.level_after, "") if blocks else None, window + 1

    def finish_block(self, latents: Tensor) -> None:
        text = self.texts[self.segment]
        self.rollout.clean_pass(len(self.finished) * self.block, latents, text)
        self.finished.append(latents)

    def draw(self, block: int, step: int) -> Tensor:
        if step:
            return self.run.tensors["rng.renoise"][block, step - 1]
        return self.run.tensors["in.noise"][:, block * self.block : (block + 1) * self.block]

    def _watch(self, done: Pass) -> None:
        place, is_clean = done.place, done.kind is PassKind.CLEAN
        attends_sink = place.start and any(run.slot < self.rollout.window.sink for run in place.attended)
        self.joint = self.joint if is_clean else done
        row: dict[str, object] = {
            "kind": done.kind.value,
            "num_frames": place.frames,
            "timesteps": torch.tensor(
                [*done.timesteps, *[NOTHING_THERE] * (len(self.rollout.steps) - len(done.timesteps))],
                dtype=torch.float32,
            ),
            "current_start": place.start * self.tokens,
            "key_frames": len(place.attended_slots) + place.passing * place.frames,
            "sink_start": place.sink_start if attends_sink else NOTHING_THERE,
            "flow": compute_statistic(done.flow),
            "x0": compute_statistic(done.clean),
        }
        if is_clean:
            end = place.start + place.frames
            row |= {"gend": end * self.tokens, "lend": min(end, self.rollout.window.size) * self.tokens}
            for layer in range(len(self.rollout.cache.layers)):
                k, v = self._read_cache(layer, end)
                row |= {f"k.{layer}": compute_statistic(k), f"v.{layer}": compute_statistic(v)}
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def _read_cache(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Read a layer's keys and values in the order of time; the keys of the sink are not rotated."""
        cache = self.rollout.cache.layers[layer]
        slots = self.rollout.window.list_slots(end)
        k, v = (x.unflatten(1, (-1, self.tokens))[:, slots].flatten(1, 2) for x in (cache.k_BSNH, cache.v_BSNH))
        return k, v

    def collect_results(self, latents: Tensor) -> dict[str, Tensor]:
        found = {"out.latents": latents}
        found |= {f"trace.{name}": column for name, column in stack_rows(self.rows).items()}
        for layer in range(len(self.rollout.cache.layers)):
            k, v = self._read_cache(layer, len(self.finished) * self.block)
            found |= {f"out.k.{layer}": k, f"out.v.{layer}": v}
        return found


def _refuse_bugs(run: RecordedRun, num_blocks: int, steps: tuple[int, ...], window: int) -> None:
    """Refuse runs that record what we do not imitate. Raises WeightsError."""
    if num_blocks < len(steps):
        raise WeightsError(
            f"{run.path} records a bug of the reference: in a video of fewer blocks than steps ({num_blocks} of "
            f"{len(steps)}), the last block begins again in every window; here such a video is made right"
        )
    if window < run.read_number("sink") + run.read_number("block") * len(steps):
        raise WeightsError(
            f"{run.path} records a window of {window} frames, which does not hold the sink and a block for each of "
            f"{len(steps)} steps; the reference then leaves the sink at the beginning for ever; here it is refused"
        )
