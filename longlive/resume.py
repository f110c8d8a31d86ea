"""What a training resumes from, as named tensors: states joined into one, and optimizers as tensors alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    """One state of several, each under its name."""
    return {f"{name}.{key}": value for name, tensors in parts.items() for key, value in tensors.items()}


def part(state: Mapping[str, Tensor], name: str) -> Tensors:
    """What `joined` took under `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def state_of(optimizer: torch.optim.Optimizer) -> Tensors:
    """All that an optimizer remembers."""
    return {
        f"{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer its memory back; rates and the like stay as they are."""
    entries: dict[int, Tensors] = {}
    for path, value in state.items():
        index, key = path.split(".")
        entries.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
