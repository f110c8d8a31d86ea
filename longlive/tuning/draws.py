"""The random draws of a chunk, counted instead of drawn from a running generator.

Chunk n of a seed has the same draws in every process, so a resumed tuning equals the uninterrupted one.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import MAX_STEP
from ..rollout.noise import compute_noise
from .dmd import ClipNoise

CLIP_PLACE = 2**32  # of a clip's noise in the Philox counter; all blocks have smaller places


@dataclass(frozen=True, slots=True)
class ChunkDraws:
    """Everything random in a chunk. It depends only on the seed and the numbers of the chunk and its videos."""

    seed: int
    chunk: int
    videos: tuple[int, ...]  # their places in the batch of all processes
    block_shape: tuple[int, int, int, int]  # F, C, H, W
    num_steps: int
    shift: float  # of the student's schedule

    @property
    def exit_step(self) -> int:
        """The denoising step to exit at. All processes have the same one, as in the reference, which broadcasts it."""
        return random.Random(f"exit {self.seed} {self.chunk}").randrange(self.num_steps)  # noqa: S311 (counted, no secret)

    def draw_noise(self, block: int, step: int) -> Tensor:
        return self._draw_normal(block * (self.num_steps + 1) + step, self.block_shape)

    def draw_context_noise(self, block: int) -> Tensor:
        return self.draw_noise(block, self.num_steps)

    def draw_clip_noise(self, clip_BFCHW: Tensor) -> ClipNoise:
        """Draw the noise under which the score networks see a clip. Each video has its own level."""
        index = [random.Random(f"level {self.seed} {self.chunk} {video}").randrange(MAX_STEP) for video in self.videos]  # noqa: S311 (counted, no secret)
        noise = self._draw_normal(CLIP_PLACE, tuple(clip_BFCHW.shape[1:]))
        return ClipNoise.of_index(torch.tensor(index, device=clip_BFCHW.device), noise.to(clip_BFCHW), self.shift)

    def _draw_normal(self, place: int, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([compute_noise(self.seed, (video, place, self.chunk), shape) for video in self.videos])
