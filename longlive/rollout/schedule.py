"""The flow-matching schedule: noise levels, denoising steps, and the conversion of a flow to a clean sample.

Self-Forcing's table as LongLive uses it: 1000 shifted levels, without sigma 0. Times run 0..1000, sigmas 0..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import MAX_STEP, RolloutConfig
from ..model.dtypes import choose_exact_device, choose_float


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


@dataclass(frozen=True, slots=True)
class DenoisingSteps:
    """The timesteps of a block's denoising steps, with falling noise, and their sigmas [steps]."""

    timesteps: Tensor
    sigmas: Tensor
    context_sigma: Tensor  # of the timestep of clean passes and recaches []

    @classmethod
    def of_config(cls, config: RolloutConfig) -> "DenoisingSteps":
        schedule = Schedule(config.shift)
        timesteps = schedule.warp(config.steps)
        return cls(timesteps, schedule.sigma(timesteps), schedule.sigma(torch.tensor(config.context_noise)))

    def __len__(self) -> int:
        return len(self.timesteps)


def fill_timesteps(x_BFCHW: Tensor, timesteps: Sequence[float]) -> Tensor:
    """Return the timestep of each frame of the latents of a pass [B, F], where float64 can be computed.

    Each of `timesteps` is that of equally many frames.
    """
    batch, frames = x_BFCHW.shape[:2]
    by_block = torch.tensor(timesteps, dtype=torch.float32, device=choose_exact_device(x_BFCHW.device))
    return by_block.repeat_interleave(frames // len(timesteps)).expand(batch, -1)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma) x_0 + sigma epsilon, in float32, as `noise`'s dtype. `sigma` broadcasts."""
    return ((1 - sigma) * clean.float() + sigma * noise.float()).to(noise.dtype)


def convert_flow_to_clean(noisy: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_t - sigma v, in float64, as `flow`'s dtype. `sigma` broadcasts."""
    wide = choose_float(flow.device)
    return (noisy.to(wide) - sigma.to(wide) * flow.to(wide)).to(flow.dtype)


def convert_clean_to_flow(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_t - x_0) / sigma, in float64, as `clean`'s dtype. `sigma` broadcasts."""
    wide = choose_float(clean.device)
    return ((noisy.to(wide) - clean.to(wide)) / sigma.to(wide)).to(clean.dtype)
