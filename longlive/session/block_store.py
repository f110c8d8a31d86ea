"""A store of finished work, in memory and on disk: an entry of tensors is found by a hash of all that determines them.

A store makes it cheap to change only the last prompt or to continue after a crash. It holds blocks of latents and the
fragments of videos (`video/render.py`). An entry is one file, written under another name and renamed, so neither two
processes nor a killed one leave half an entry.
"""

import contextlib
import functools
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..digest import hash_tensors
from ..files import PART, atomic_write, read_bytes, sweep
from ..model.dtypes import is_finite

log = logging.getLogger(__name__)

MEMORY_BYTES = 1 << 30  # a minute at 832 x 480 is 48 MB
DISK_BYTES = 8 << 30
ENTRY = ".safetensors"
ENTRY_FILE = re.compile(rf"([0-9a-f]{{2}})/\1[0-9a-f]{{62}}{re.escape(ENTRY)}")
PART_FILE = re.compile(rf"[0-9a-f]{{2}}/\.[0-9a-f]{{32}}{re.escape(PART)}")
DIGEST_TENSOR = "digest"  # the name of the tensor that holds the digest of the others
LATENTS = "latents"
TRIM_TO = 0.9  # of the disk limit: this leaves room, so that not every new entry trims

Entry = dict[str, Tensor]
Expected = Mapping[str, tuple[tuple[int, ...] | None, torch.dtype]]
"""The shape and dtype of each tensor by name; a shape of None stands for any length of one axis."""


class Store:
    """Entries of tensors by key: the latest in memory, all in `folder` if there is one; the oldest go first.

    One thread may write while another reads.
    """

    def __init__(
        self, folder: str | Path | None = None, *, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self._has_warned = False
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._held = 0  # bytes in memory
        self._lock = threading.Lock()  # of both
        self._on_disk: int | None = None  # bytes, known after the first look

    def read(self, key: str, expected: Expected) -> Entry | None:
        """Return the tensors under a key, or None. A damaged file is removed and counts as none.

        So does a file that the system does not let us read: `write` reports what matters of that.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and find_mismatch(entry, expected) is None:
                self._entries.move_to_end(key)
                return entry
        path = self._path(key)
        if path is None:
            return None
        try:
            # in one go: another process may replace the file between two openings
            entry = check_entry(load(read_bytes(path, self.disk_bytes)), expected)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            if getattr(error, "errno", None):
                return None
            log.warning("the stored entry %s is damaged (%s); it is computed again", path, error)
            remove_entry(path)
            return None
        with contextlib.suppress(OSError):  # another user's file, or a read-only disk
            os.utime(path)  # used last
        self._hold(key, entry)
        return entry

    def write(self, key: str, entry: Entry) -> None:
        """Store tensors. If the disk refuses, report it once and keep them in memory; the next entry may fit."""
        self._hold(key, entry)
        path = self._path(key)
        if path is None:
            return
        content = save({**entry, DIGEST_TENSOR: hash_entry(entry)})
        try:
            self._make_room(len(content))
            if path.is_dir():
                path.rmdir()
            with atomic_write(path) as part:
                part.write_bytes(content)
            self._has_warned = False
        except OSError as error:
            self._on_disk = None
            if not self._has_warned:
                log.warning(
                    "finished work cannot be stored in %s (%s): this run continues in memory alone, and a later run "
                    "cannot resume from it; free some space or choose another folder",
                    self.folder,
                    error,
                )
            self._has_warned = True

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}{ENTRY}" if self.folder else None

    def _hold(self, key: str, entry: Entry) -> None:
        with self._lock:
            self._held -= count_bytes(self._entries.pop(key, {}))
            if count_bytes(entry) > self.memory_bytes:
                return
            self._held += count_bytes(entry)
            self._entries[key] = entry
            while self._held > self.memory_bytes:
                self._held -= count_bytes(self._entries.popitem(last=False)[1])

    def _make_room(self, count: int) -> None:
        if count > self.disk_bytes:
            raise OSError(f"an entry of {count:,} bytes is larger than its limit of {self.disk_bytes:,}")
        if self._on_disk is None or self._on_disk + count > self.disk_bytes:
            self._on_disk = self._trim(count)
        self._on_disk += count

    def _trim(self, count: int) -> int:
        """Remove the entries unused for longest if `count` more bytes are too many; return the bytes that stay.

        What has another name than an entry or a part of ours is someone else's, and stays.
        An entry whose time is in the future was used before the clock was set back. It goes first; otherwise it would
        stay longer than every new one.
        """
        assert self.folder is not None
        entries, now = [], time.time_ns()
        for path in self.folder.glob("??/*"):
            name = path.relative_to(self.folder).as_posix()
            if PART_FILE.fullmatch(name):
                sweep(path)
            if not ENTRY_FILE.fullmatch(name):
                continue
            with contextlib.suppress(OSError):  # another process may have removed it
                stat = path.stat()
                entries.append((stat.st_mtime_ns <= now, stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for *_, size, _ in entries)
        if total + count <= self.disk_bytes:
            return total
        for *_, size, path in sorted(entries):
            if remove_entry(path):
                total -= size
            if total + count <= self.disk_bytes * TRIM_TO:
                break
        return total


@functools.cache
def open_store(folder: Path, *, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> Store:
    """Return the one store that this process has in a folder, so that the folder is listed only once."""
    return Store(folder, memory_bytes=memory_bytes, disk_bytes=disk_bytes)


def check_entry(entry: Entry, expected: Expected) -> Entry:
    """Return the tensors of an entry without their digest. Raises KeyError or ValueError if they are not as stored."""
    digest = entry.pop(DIGEST_TENSOR)
    if mismatch := find_mismatch(entry, expected):
        raise ValueError(mismatch)
    if digest.dtype != torch.uint8 or not torch.equal(digest, hash_entry(entry)):  # `equal` may fail for other dtypes
        raise ValueError("it is not what was stored")
    for name, tensor in entry.items():
        if not is_finite(tensor):
            raise ValueError(f"its {name} hold NaN or infinity")
    return entry


def find_mismatch(entry: Entry, expected: Expected) -> str | None:
    """Say in what the names, shapes or dtypes of an entry are not those expected; None if they are."""
    if entry.keys() != expected.keys():
        return f"it holds {sorted(entry)}, expected {sorted(expected)}"
    for name, (shape, dtype) in expected.items():
        tensor = entry[name]
        if tensor.dtype != dtype:
            return f"its {name} are {tensor.dtype}, expected {dtype}"
        if tensor.ndim != 1 if shape is None else tuple(tensor.shape) != shape:
            return f"the shape of its {name} is {tuple(tensor.shape)}, expected {shape or 'one axis'}"
    return None


def remove_entry(path: Path) -> bool:
    """Remove an entry, or an empty folder in its place; return whether it is gone."""
    try:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def count_bytes(entry: Entry) -> int:
    return sum(tensor.nbytes for tensor in entry.values())


def hash_entry(entry: Entry) -> Tensor:
    """Compute the digest of tensors as the bytes that are stored beside them."""
    named = {"" if len(entry) == 1 else name: tensor for name, tensor in entry.items()}
    return torch.frombuffer(bytearray.fromhex(hash_tensors(named)), dtype=torch.uint8)
