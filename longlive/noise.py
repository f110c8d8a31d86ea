"""Noise that is counted, not drawn: a block's noise depends on the seed, the block and the step, and on nothing else.

The key of a Philox counter generator (Salmon et al., SC 2011) is the seed, its counter the block and the step. No
global random state is read or changed, so a block is the same whatever was made before it, in whichever process.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[int, int], Tensor]
"""From (block, step) to standard normal noise [B, F, C, H, W]; step 0 is what the block starts from."""

SEED_MASK = 2**64 - 1


def counted_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Noise:
    """The noise of every block and step of `seed`, made on the CPU in float32 and rounded to `dtype`."""

    def at(block: int, step: int) -> Tensor:
        generator = np.random.Generator(np.random.Philox(key=seed & SEED_MASK, counter=[0, 0, step, block]))
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(dtype)

    return at
