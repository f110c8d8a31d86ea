"""The state of a training as named tensors: nested states under dotted names, and optimizers."""

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def join_states(parts: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    """Join several states into one, each under its name."""
    return {f"{name}.{key}": value for name, tensors in parts.items() for key, value in tensors.items()}


def select_state(state: Mapping[str, Tensor], name: str) -> Tensors:
    """Return the state that `join_states` put under `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def read_optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return all tensors of an optimizer, by parameter number and name."""
    return {
        f"{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Undo `read_optimizer_state`. Learning rates and other options stay as they are."""
    entries: dict[int, Tensors] = {}
    for path, value in state.items():
        index, key = path.split(".")
        entries.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
