"""A store of finished blocks under the hash of all that determines them, in memory and on disk.

It makes "change only the last prompt" and "go on after a crash" cheap, whatever the host caches. An entry is one file,
written under another name and renamed, so that two processes or a killed one never leave half an entry.
"""

import contextlib
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from .digest import digest_of_tensors
from .files import atomic_write

log = logging.getLogger(__name__)

MEMORY_BYTES = 1 << 30  # a minute at 832 x 480 is 48 MB
DISK_BYTES = 8 << 30
ENTRY = ".safetensors"
ABANDONED_SECONDS = 3600  # after which a part belongs to a process that was killed
TRIM_TO = 0.9  # of the disk limit, so that not every block has to look for the oldest


class Store:
    """Blocks by key: the latest in memory, all in `folder` where one is given; the oldest go first."""

    def __init__(
        self, folder: Path | None = None, *, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        self.folder, self.memory_bytes, self.disk_bytes = folder, memory_bytes, disk_bytes
        self._writable = folder is not None
        self._blocks: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0  # bytes in memory
        self._on_disk: int | None = None  # bytes, known after the first look

    def get(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """The block, or None. A damaged file counts as none and is removed."""
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            stored = load(path.read_bytes())  # read once: another process may replace the file between two openings
            block, digest = stored["latents"], stored["digest"]
            if tuple(block.shape) != shape:
                raise ValueError(f"its shape is {tuple(block.shape)}, expected {shape}")
            if not digest.equal(stamp(block)):
                raise ValueError("it is not what was stored")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            log.warning("the stored block %s is damaged (%s); it is made anew", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # another user's file, or a read-only disk
            os.utime(path)  # used last
        self._hold(key, block)
        return block

    def put(self, key: str, block: Tensor) -> None:
        """Keep a block. A disk that refuses is reported once and not tried again; memory still holds the block."""
        self._hold(key, block)
        path = self._path(key)
        if path is None or not self._writable:
            return
        try:
            self._make_room(block.nbytes)
            write_atomically(path, {"latents": block, "digest": stamp(block)})
        except (OSError, SafetensorError) as error:
            log.warning(
                "blocks cannot be kept in %s (%s): this run goes on with memory alone, but a later one could not "
                "resume from there; free some space or choose another folder",
                self.folder,
                error,
            )
            self._writable = False

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}{ENTRY}" if self.folder else None

    def _hold(self, key: str, block: Tensor) -> None:
        if key not in self._blocks:
            self._held += block.nbytes
        self._blocks[key] = block
        while self._held > self.memory_bytes and self._blocks:
            self._held -= self._blocks.popitem(last=False)[1].nbytes

    def _make_room(self, num_bytes: int) -> None:
        if self._on_disk is None or self._on_disk + num_bytes > self.disk_bytes:
            self._on_disk = self._trimmed()
        self._on_disk += num_bytes

    def _trimmed(self) -> int:
        """Remove the blocks unused for longest if there are too many; the bytes that stay."""
        assert self.folder is not None
        entries = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                stat = path.stat()
                if path.suffix == ENTRY:
                    entries.append((stat.st_mtime_ns, stat.st_size, path))
                elif time.time() - stat.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        if total <= self.disk_bytes:
            return total
        for _, size, path in sorted(entries):
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
            if total <= self.disk_bytes * TRIM_TO:
                break
        return total


def stamp(block: Tensor) -> Tensor:
    """The digest of a block as bytes that are stored beside it."""
    return torch.frombuffer(bytearray.fromhex(digest_of_tensors({"": block})), dtype=torch.uint8)


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` holds the old file or the whole new one, never a part.

    Raises OSError or SafetensorError where the disk refuses; nothing is left behind then.
    """
    with atomic_write(path) as part:
        save_file(tensors, part, metadata)
