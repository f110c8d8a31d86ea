"""Compare replays with recorded runs of the reference, through the same classes that make videos.

A recorded run is a safetensors file of inputs, random draws and results (format: `tests/reference/README.md`). A replay
computes the results again and gives them their recorded names. A run is reproduced if the replay has every result
within its tolerance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError, shorten
from .part_runs import replay_rotations, replay_schedules, replay_vae
from .recorded_run import RecordedRun
from .rolling_runs import replay_blockwise, replay_given, replay_pipeline, replay_training
from .rollout_runs import replay_rollout
from .tuning_runs import replay_dmd_loss, replay_scores, replay_streaming

REPLAYS: dict[str, Callable[[RecordedRun], dict[str, Tensor]]] = {
    "single": replay_rollout,
    "interactive": replay_rollout,
    "lora": replay_rollout,
    "rope": replay_rotations,
    "scheduler": replay_schedules,
    "vae": replay_vae,
    "bidir": replay_scores,
    "dmd_loss": replay_dmd_loss,
    "streaming_training": replay_streaming,
    "pipeline": replay_pipeline,
    "given": replay_given,
    "blockwise": replay_blockwise,
    "training": replay_training,
}
KINDS_WITH_GRADIENTS = ("dmd_loss", "streaming_training")
GRADIENT_TOLERANCE = 1e-4  # of the largest value of a gradient

# The errors by which a replay of senseless tensors ends: torch refuses a wrong shape or dtype with any of these.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a replay is from its recorded run."""

    difference: float  # largest absolute difference
    where: str  # the tensor it is in
    failures: tuple[str, ...]  # one sentence for each tensor out of tolerance


def verify(path: Path) -> Verdict:
    """Replay the run at `path` and compare. Raises WeightsError for a file that cannot be replayed."""
    run = RecordedRun.open(path)
    kind = run.meta.get("kind")
    if kind not in REPLAYS:
        raise WeightsError(
            f"{path} is not a run that can be replayed: its kind is {shorten(repr(kind))}, "
            f"expected one of {', '.join(REPLAYS)}"
        )
    try:
        return compare(kind, replay_run(run), run.results)
    except UNFIT as error:
        raise WeightsError(f"{path} is an incomplete run ({shorten(repr(error))}); record it again") from error


def compare(kind: str, replayed: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> Verdict:
    """Compare what was replayed with what was recorded."""
    largest, where, failures = 0.0, "nothing", []
    for name, recorded in results.items():
        if name not in replayed:
            failures.append(f"{name} is not reproduced")
            continue
        difference, allowed = measure_distance(kind, name, replayed[name], recorded)
        if not difference <= allowed:  # a NaN fails too
            failures.append(f"{name} differs by {difference:.2g}, allowed is {allowed:.2g}")
        absolute = find_largest_difference(replayed[name], recorded)
        if absolute > largest or absolute != absolute:
            largest, where = absolute, name
    return Verdict(largest, where, tuple(failures))


def replay_run(run: RecordedRun) -> dict[str, Tensor]:
    """Compute every result of a run again, under its recorded name."""
    kind = run.meta["kind"]
    with torch.set_grad_enabled(kind in KINDS_WITH_GRADIENTS):
        return REPLAYS[kind](run)


def measure_distance(kind: str, name: str, ours: Tensor, recorded: Tensor) -> tuple[float, float]:
    """Measure the difference of two tensors, and say what is allowed: absolute, relative or in rounding steps."""
    if ours.shape != recorded.shape or (ours.dtype != recorded.dtype and not recorded.is_floating_point()):
        return float("inf"), 0.0
    if recorded.dtype is torch.bfloat16:
        return float((_to_ordinal(ours) - _to_ordinal(recorded)).abs().max()), 1.0
    a, b = ours.double(), recorded.double()
    difference = (a - b).abs()
    if name == "out.flow_from_x0":
        difference = difference / b.abs().clamp_min(1.0)
    if name.startswith("grad.") or name.endswith(".dx"):
        return float(difference.max()), GRADIENT_TOLERANCE * float(b.abs().max())
    return float(difference.max()), _choose_tolerance(kind, name, recorded.dtype)


def find_largest_difference(ours: Tensor, recorded: Tensor) -> float:
    """Find the largest absolute difference of two tensors; infinity for other shapes."""
    return float((ours.double() - recorded.double()).abs().max()) if ours.shape == recorded.shape else float("inf")


def _to_ordinal(x: Tensor) -> Tensor:
    """Map bfloat16 numbers to integers in the same order, so that neighbours differ by one."""
    bits = x.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _choose_tolerance(kind: str, name: str, dtype: torch.dtype) -> float:
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
