"""Muon for matrices (Jordan et al. 2024; Liu et al., arXiv 2502.16982), AdamW for the rest, at one rate."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...tuning.optimizer_state import join_states, read_optimizer_state, restore_optimizer, select_state

MAX_NORM = 1.0  # of the gradients of a step


class Optimizer:
    """Both optimizers. A convolution counts as a matrix [outputs, inputs x taps]; Muon's updates have AdamW's size."""

    def __init__(self, module: nn.Module, rate: float, *, of_muon: Callable[[str], bool] = lambda _: True) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"training needs Muon, which torch has since 2.9, but this is torch {torch.__version__}; upgrade torch"
            )
        named = dict(module.named_parameters())
        self.parameters = list(named.values())
        matrices = {name for name, parameter in named.items() if is_matrix(parameter) and of_muon(name)}
        self.pairs = [(named[name], nn.Parameter(as_matrix(named[name].data))) for name in named if name in matrices]
        self.others = [parameter for name, parameter in named.items() if name not in matrices]
        matrices = [matrix for _, matrix in self.pairs]
        assert all(matrix.data_ptr() == p.data_ptr() for p, matrix in self.pairs), "a copy would not update the module"
        self.muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, ns_steps=4, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(self.others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Apply the gradients and free them."""
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        for parameter, matrix in self.pairs:
            matrix.grad = None if parameter.grad is None else as_matrix(parameter.grad)
            parameter.grad = None
        for _, optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """The states of both optimizers, by name."""
        return join_states({name: read_optimizer_state(optimizer) for name, optimizer in self._optimizers})

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, optimizer in self._optimizers:
            restore_optimizer(optimizer, select_state(state, name))

    @property
    def _optimizers(self) -> tuple[tuple[str, torch.optim.Optimizer], ...]:
        return ("muon", self.muon), ("adamw", self.adamw)


def lay_channels_last(module: nn.Module) -> None:
    """Lay out the weights of convolutions channels-last: fastest on a CPU, and what `as_matrix` needs."""
    for parameter in module.parameters():
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
        if layout:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and min(parameter.shape[0], parameter.shape[1]) >= 16


def as_matrix(tensor: Tensor) -> Tensor:
    """View a channels-last weight as a matrix [outputs, taps x inputs]."""
    return tensor.permute(0, *range(2, tensor.ndim), 1).flatten(1)
