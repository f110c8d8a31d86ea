"""Blocks in stores, as tests of several folders put and find them."""

import torch
from torch import Tensor

from longlive.session.block_store import LATENTS, Store


def write_block(store: Store, key: str, latents: Tensor) -> None:
    store.write(key, {LATENTS: latents})


def read_block(store: Store, key: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor | None:
    entry = store.read(key, {LATENTS: (shape, dtype)})
    return entry[LATENTS] if entry else None
