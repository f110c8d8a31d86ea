"""Rolls out a video whose blocks are denoised jointly, each at its own level of noise (Rolling Forcing, §3).

Level j of L counts the steps that a block has behind it. Every pass takes each block in flight one level further; then
the oldest is finished, and another one enters as pure noise (arXiv 2509.25161; the released code's inference loop).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.causal import TextKeys
from .noise import Noise
from .rollout import Pass, PassKind, Rollout
from .schedule import add_noise, convert_flow_to_clean


class RollingRollout(Rollout):
    """A rollout over a `RollingWindow`."""

    @torch.no_grad()
    def roll(
        self, start: int, in_flight: Sequence[Tensor], level: int, text: TextKeys, noise: Noise, block: int
    ) -> list[Tensor]:
        """Take blocks [B, F, C, H, W] one level further, by one pass; return them.

        The oldest is at `level` and begins at position `start`; each of the others is a level behind the one before it.
        At the last level the oldest is finished. The others are noised again: `block` is the oldest's number, which
        with the step chooses the noise.
        """
        blocks = [self.copy_to_model(each) for each in in_flight]
        noisy = torch.cat(blocks, dim=1)
        levels = [level - behind for behind in range(len(blocks))]
        place = self.window.place_block(start, noisy.shape[1])
        timesteps = tuple(self.steps.timesteps[levels].tolist())
        flow = self._pass(noisy, timesteps, text, place)
        assert flow is not None
        sigmas = self.steps.sigmas[levels].repeat_interleave(self.config.block)[:, None, None, None]
        clean = convert_flow_to_clean(noisy, flow, sigmas.to(flow.device))
        self.watch(Pass(PassKind.DENOISE, place, level, timesteps, flow, clean))
        return [
            self._add_noise(each, reached + 1, noise, block + behind)
            for behind, (each, reached) in enumerate(zip(clean.split(self.config.block, dim=1), levels, strict=True))
        ]

    def _add_noise(self, clean: Tensor, level: int, noise: Noise, block: int) -> Tensor:
        """Noise a predicted block to a level; past the last one it is finished."""
        if level == len(self.steps):
            return clean
        return add_noise(clean, self.copy_to_model(noise(block, level)), self.steps.sigmas[level])
