"""The flow-matching schedule: noise levels, denoising steps, and the conversion of a flow to a clean sample.

Self-Forcing's table as LongLive uses it: 1000 levels bent by `shift`, no level 0. Times run 0..1000, sigmas 0..1.
"""

import torch
from torch import Tensor

from ..config import MAX_STEP
from ..model.dtypes import choose_float


class Schedule:
    """A table of noise levels bent by `shift`: sigma' = shift sigma / (1 + (shift - 1) sigma)."""

    def __init__(self, shift: float) -> None:
        linear = torch.linspace(1, 0, MAX_STEP + 1)[:-1]
        self.sigmas = shift * linear / (1 + (shift - 1) * linear)  # [1000] falling, float32
        self.timesteps = MAX_STEP * self.sigmas

    def warp(self, steps: tuple[int, ...]) -> Tensor:
        """Warp plain steps 1..1000 into timesteps [len(steps)]: at shift 5, 1000, 750, 500, 250 become 1000, 937.5,
        833.33, 625."""
        return self.timesteps[[MAX_STEP - step for step in steps]]

    def sigma(self, timesteps: Tensor) -> Tensor:
        """The sigma of the table entry nearest to each of `timesteps` (any shape)."""
        distance = (self.timesteps.to(timesteps.device) - timesteps[..., None]).abs()
        return self.sigmas.to(timesteps.device)[distance.argmin(-1)]

    def weights(self) -> Tensor:
        """Bell-shaped training weight [1000] of each entry (Self-Forcing's scheduler; DMD does not use it)."""
        bell = torch.exp(-2 * ((self.timesteps - MAX_STEP / 2) / MAX_STEP) ** 2)
        bell = bell - bell.min()
        return bell * (MAX_STEP / bell.sum())


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma) x_0 + sigma epsilon, in float32, as `noise`'s dtype. `sigma` broadcasts."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(noise.dtype)


def clean_from_flow(noisy: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_t - sigma v, in float64, as `flow`'s dtype. `sigma` broadcasts."""
    wide = choose_float(flow.device)
    return (noisy.to(wide) - sigma.to(wide) * flow.to(wide)).to(flow.dtype)


def flow_from_clean(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_t - x_0) / sigma, in float64, as `clean`'s dtype. `sigma` broadcasts."""
    wide = choose_float(clean.device)
    return ((noisy.to(wide) - clean.to(wide)) / sigma.to(wide)).to(clean.dtype)
