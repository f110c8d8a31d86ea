"""The identity of weights: a SHA-256 over every byte, worked out once and remembered (design of the block store).

Knows files and tensors, not what they mean.
"""

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import open_regular, read_text, write_text
from .model.weights import files_of
from .untrusted import brief, parse_json

MEMORY = "digests.json"
SAMPLES, SAMPLE_BYTES = 64, 4096  # evenly over a file, its ends included
SETTLED_SECONDS = 3.0  # a younger file may change again within one tick of its clock (2 s on FAT) and is not remembered
HASHING_THREADS = 4
TENSORS_HELD = 16  # of a stream

log = logging.getLogger(__name__)


def digest(path: str | Path, *, cache_dir: Path | None = None) -> str:
    """SHA-256 over the bytes of a file, or over those files of a folder that `read` uses.

    With `cache_dir`, remembered there under the resolved path for as long as the file bears the same `mark`.
    """
    try:
        path = Path(os.path.expanduser(path)).resolve()  # that of Path raises for a user there is not
        if path.is_dir():
            parts = {file.name: digest(file, cache_dir=cache_dir) for file in files_of(path)}
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        with open_regular(path) as file:
            before = mark(file)
            *known_mark, known = remembered(cache_dir).get(str(path), [""])
            if tuple(known_mark) == before:
                return known
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = mark(file)
    except (OSError, RuntimeError, ValueError) as error:  # the last two of links that lead to each other, a null byte
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read ({brief(reason)}); check the path and the disk") from error

    _, *times, _, _ = after
    if cache_dir and before == after and time.time() - max(times) / 1e9 > SETTLED_SECONDS:
        remember(cache_dir, str(path), [*after, found])
    return found


def mark(file: BinaryIO) -> tuple[int, int, int, int, str]:
    """What tells a file from one that took its place: size, two times, number, and a hash of a sample of its bytes.

    A copied or unpacked file has the time of change it had elsewhere; the second time and the number are the disk's
    own. Windows, FAT, network drives and read-only images may give the same ones to another file: then the sample
    tells them apart, for other weights differ nearly everywhere.
    """
    stat = os.fstat(file.fileno())
    sample = hashlib.sha256()
    for i in range(SAMPLES + 1):
        file.seek(max(0, stat.st_size - SAMPLE_BYTES) * i // SAMPLES)
        sample.update(file.read(SAMPLE_BYTES))
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sample.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        sha.update(len(head).to_bytes(8, "little") + head)
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    return sha.hexdigest()


def digest_of_stream(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the digests of many tensors by name, in whatever order they come.

    A few are hashed at a time, each in a thread (hashlib lets others run), and no more are held.
    """
    stream, digests = iter(tensors), {}
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        while batch := dict(itertools.islice(stream, TENSORS_HELD)):
            digests |= zip(batch, pool.map(digest_of_tensors, ({"": tensor} for tensor in batch.values())), strict=True)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def remembered(cache_dir: Path | None) -> dict[str, list]:
    """All remembered digests; none if there are none or the file is damaged."""
    if cache_dir is None:
        return {}
    try:
        entries = parse_json(read_text(cache_dir / MEMORY))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and is_entry(entry)}


def is_entry(entry: list) -> bool:
    """Whether a list has the form of a `mark` and a digest."""
    return len(entry) == 6 and isinstance(entry[-1], str) and len(entry[-1]) == 64


def remember(cache_dir: Path, path: str, entry: list) -> None:
    """Add one digest; the file is replaced whole, so a reader or a crash never sees half of it."""
    try:
        write_text(cache_dir / MEMORY, json.dumps(remembered(cache_dir) | {path: entry}, indent=1))
    except OSError as error:  # a digest that is not remembered costs seconds, never a video
        log.warning("the digest of %s is not remembered: %s cannot be written (%s)", path, cache_dir, error)
