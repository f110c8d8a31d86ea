"""Noise that is counted, not drawn: it depends on a seed and a place, and on nothing else.

The key of a Philox counter generator (Salmon et al., SC 2011) is the seed, its counter the place: of a video, block and
step. No global random state is read or changed, so a block is the same whatever was made before it, in whichever
process.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .config import MAX_SEED

Noise = Callable[[int, int], Tensor]
"""From (block, step) to standard normal noise [B, F, C, H, W]; step 0 is what the block starts from."""


def normal(seed: int, place: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    """The standard normal noise of a place, made on the CPU in float32."""
    generator = np.random.Generator(np.random.Philox(key=seed & MAX_SEED, counter=[0, *place]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def counted_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Noise:
    """The noise of every block and step of `seed`, rounded to `dtype`."""
    return lambda block, step: normal(seed, (0, step, block), shape).to(dtype)
