"""A recorded run of the reference, as a file, and its statistics (`tests/reference/README.md` is the format)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .config import MAX_STEP
from .errors import CheckpointError
from .files import check_regular, is_plain_name
from .schedule import Schedule
from .untrusted import brief, conform, parse_json

RECORDED = ("out.", "trace.", "merged", "freqs.", "shift")  # beginnings of the names of results
MAX_NUMBER = 1 << 16  # frames, widths and the like of a run, which is tiny
EDGE = 8  # first and last values a statistic holds
INTEGERS = ("kind", "segment", "num_frames", "current_start", "gend", "lend", "flag")  # columns of a trace


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run: its tensors, its metadata, its place."""

    path: Path
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Read a run. Raises CheckpointError for a file that is none."""
        try:
            check_regular(path)
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
            return cls(path, load_file(path), meta)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read as a recorded run: {brief(error)}") from error

    @property
    def results(self) -> dict[str, Tensor]:
        found = {name: tensor for name, tensor in self.tensors.items() if name.startswith(RECORDED)}
        if "grads" in self.meta:  # in a file of their own
            found |= {f"grad.{name}": x for name, x in Run.open(self.beside("grads")).tensors.items()}
        return found

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def number(self, name: str) -> int:
        number = int(self.meta[name])
        if abs(number) > MAX_NUMBER:
            raise ValueError(f"{name} is {number}; it must be at most {MAX_NUMBER}")
        return number

    def values(self, name: str) -> list:
        return conform(parse_json(self.meta[name]), list, name)

    def geometry(self) -> dict[str, int]:
        """The sizes of the network that was recorded."""
        return conform(parse_json(self.meta["geometry"]), dict, "geometry")

    def beside(self, name: str) -> Path:
        """The file in the run's own folder that its metadata name. Raises CheckpointError for one elsewhere."""
        file = self.meta[name]
        if not is_plain_name(file):
            raise CheckpointError(f"{self.path} names {brief(file)!r} as a file beside it; record it anew")
        return self.path.parent / file


def statistic(x: Tensor | None) -> Tensor:
    """Mean, mean of absolute values, the first and the last eight values: 18 numbers, float32."""
    assert x is not None
    flat = x.reshape(-1)
    means = torch.stack([flat.double().mean(), flat.double().abs().mean()]).float()
    return torch.cat([means, flat[:EDGE].float(), flat[-EDGE:].float()])


def plain_steps(run: Run, shift: float) -> tuple[int, ...]:
    """The denoising steps before the shift warps them; what is recorded are the warped ones."""
    nearest = (Schedule(shift).timesteps - torch.tensor(run.values("denoise_steps"))[:, None]).abs().argmin(-1)
    return tuple(MAX_STEP - int(entry) for entry in nearest)


def traced(rows: Mapping[str, list]) -> dict[str, Tensor]:
    """The columns of a trace as tensors, from the values of its rows."""
    found = {}
    for name, values in rows.items():
        if isinstance(values[0], Tensor):
            found[name] = torch.stack(values)
        else:
            found[name] = torch.tensor(values, dtype=torch.int64 if name in INTEGERS else torch.float32)
    return found
