"""A recorded run of the reference, as a file, and its statistics (`tests/reference/README.md` is the format)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..config import MAX_STEP
from ..errors import WeightsError, shorten
from ..files import is_plain_name
from ..rollout.schedule import Schedule
from ..untrusted import conform, parse_json
from ..weights.tensor_file import read_tensors

RECORDED = ("out.", "trace.", "merged", "freqs.", "shift")  # beginnings of the names of results
MAX_NUMBER = 1 << 16  # frames, widths and the like of a run, which is tiny
NUM_END_VALUES = 8  # that a statistic holds from the beginning of a tensor, and as many from its end
INTEGER_COLUMNS = (  # of a trace
    *("kind", "segment", "num_frames", "current_start", "gend", "lend", "flag"),
    *("key_frames", "sink_start"),
)
OF_CLEAN_PASSES = ("trace.gend", "trace.lend", "trace.k.", "trace.v.")  # of a rolling video: written by these alone


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A recorded run: its tensors, its metadata, its path."""

    path: Path
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "RecordedRun":
        """Read a run. Raises WeightsError for a file that is not one."""
        try:
            return cls(path, *read_tensors(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightsError(f"{path} cannot be read as a recorded run: {shorten(error)}") from error

    @property
    def results(self) -> dict[str, Tensor]:
        found = {name: tensor for name, tensor in self.tensors.items() if name.startswith(RECORDED)}
        if "trace.sink_start" in found:
            is_clean = found["trace.kind"] == 1
            found |= {name: x[is_clean] for name, x in found.items() if name.startswith(OF_CLEAN_PASSES)}
        if "grads" in self.meta:  # in a file of their own
            found |= {f"grad.{name}": x for name, x in RecordedRun.open(self.find_beside("grads")).tensors.items()}
        return found

    def select(self, prefix: str) -> dict[str, Tensor]:
        """Select the tensors whose names begin with `prefix`, and remove it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def read_number(self, name: str) -> int:
        number = int(self.meta[name])
        if abs(number) > MAX_NUMBER:
            raise ValueError(f"{name} is {number}; it must be at most {MAX_NUMBER}")
        return number

    def read_values(self, name: str) -> list:
        return conform(parse_json(self.meta[name]), list, name)

    def read_geometry(self) -> dict[str, int]:
        """Read the sizes of the recorded network."""
        return conform(parse_json(self.meta["geometry"]), dict, "geometry")

    def find_beside(self, name: str) -> Path:
        """Find a file that the metadata name, in the run's own folder. Raises WeightsError for one elsewhere."""
        file = self.meta[name]
        if not is_plain_name(file):
            raise WeightsError(f"{self.path} names {shorten(file)!r} as a file beside it; record it again")
        return self.path.parent / file


def compute_statistic(x: Tensor | None) -> Tensor:
    """Compute 18 numbers, float32: the mean, the mean of absolute values, the first and the last eight values."""
    assert x is not None
    flat = x.reshape(-1)
    means = torch.stack([flat.double().mean(), flat.double().abs().mean()]).float()
    return torch.cat([means, flat[:NUM_END_VALUES].float(), flat[-NUM_END_VALUES:].float()])


def unwarp_steps(run: RecordedRun, shift: float) -> tuple[int, ...]:
    """Convert the recorded denoising steps, which the shift has warped, back to plain ones."""
    nearest = (Schedule(shift).timesteps - torch.tensor(run.read_values("denoise_steps"))[:, None]).abs().argmin(-1)
    return tuple(MAX_STEP - int(entry) for entry in nearest)


def stack_rows(rows: Mapping[str, list]) -> dict[str, Tensor]:
    """Stack the rows of a trace into one tensor per column."""
    found = {}
    for name, values in rows.items():
        if isinstance(values[0], Tensor):
            found[name] = torch.stack(values)
        else:
            found[name] = torch.tensor(values, dtype=torch.int64 if name in INTEGER_COLUMNS else torch.float32)
    return found
