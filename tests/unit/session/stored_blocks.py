"""Blocks that the tests of this folder put into stores, and their files."""

import logging
import os
import time
from pathlib import Path

import torch
from stored import read_block, write_block

from longlive.session.block_store import Store

SHAPE = (1, 3, 16, 2, 4)
BLOCK_BYTES = 4 * 3 * 16 * 2 * 4
FILE_BYTES = 2 * BLOCK_BYTES  # more than a file of one block takes, less than two


def make_key(number: int) -> str:
    return f"{number:02x}" * 32


def make_block(number: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.full(shape, float(number))


def fill(store: Store, numbers) -> Store:
    for number in numbers:
        write_block(store, make_key(number), make_block(number))
    return store


def list_held(store: Store, numbers) -> list[int]:
    """List those blocks that the store still has; checks that each is the right one."""
    found = {number: read_block(store, make_key(number), SHAPE) for number in numbers}
    assert all(latents is None or torch.equal(latents, make_block(number)) for number, latents in found.items())
    return [number for number, latents in found.items() if latents is not None]


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(folder: Path, number: int, seconds: float) -> None:
    path = folder / make_key(number)[:2] / f"{make_key(number)}.safetensors"
    then = time.time() - seconds
    os.utime(path, (then, then))


def list_warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
