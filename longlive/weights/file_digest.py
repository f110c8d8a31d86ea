"""The identity of weights files: a SHA-256 over every byte, computed once and cached."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import BinaryIO

from ..errors import WeightsError, shorten
from ..files import open_regular, read_text, write_text
from ..untrusted import parse_json
from .weights_folder import find_files

DIGESTS_FILE = "digests.json"
SAMPLES, SAMPLE_BYTES = 64, 4096  # evenly over a file, its ends included
SETTLED_SECONDS = 3.0  # a younger file may change again without a new time (FAT counts in 2 s), so it is not cached

log = logging.getLogger(__name__)


def digest_file(path: str | Path, *, cache_dir: Path | None = None) -> str:
    """Compute the SHA-256 of a file, or of those files of a folder that `read_weights_file` uses.

    With `cache_dir`, the digest is cached there under the resolved path, valid while `mark_file` gives the same mark.
    Raises WeightsError for a file that cannot be read.
    """
    try:
        path = Path(os.path.expanduser(path)).resolve()  # Path.expanduser raises for an unknown user
        if path.is_dir():
            parts = {file.name: digest_file(file, cache_dir=cache_dir) for file in find_files(path)}
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        with open_regular(path) as file:
            before = mark_file(file)
            *known_mark, known = read_digests(cache_dir).get(str(path), [""])
            if tuple(known_mark) == before:
                return known
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = mark_file(file)
    except (OSError, RuntimeError, ValueError) as error:  # the last two: a loop of links, a null byte
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{path} cannot be read ({shorten(reason)}); check the path and the disk") from error

    _, *times, _, _ = after
    if cache_dir and before == after and time.time() - max(times) / 1e9 > SETTLED_SECONDS:
        write_digest(cache_dir, str(path), [*after, found])
    return found


def mark_file(file: BinaryIO) -> tuple[int, int, int, int, str]:
    """Read what tells a file from another one at its path: size, two times, inode, and a hash of a sample of its bytes.

    The times are those of the last change of content (a copied or unpacked file keeps it) and of the last change at
    all. Windows, FAT, network drives and read-only images may give another file the same times and inode. The sample
    then tells them apart, because other weights differ nearly everywhere.
    """
    stat = os.fstat(file.fileno())
    sample = hashlib.sha256()
    for i in range(SAMPLES + 1):
        file.seek(max(0, stat.st_size - SAMPLE_BYTES) * i // SAMPLES)
        sample.update(file.read(SAMPLE_BYTES))
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sample.hexdigest()


def read_digests(cache_dir: Path | None) -> dict[str, list]:
    """Read all cached digests; none if the file is missing or damaged."""
    if cache_dir is None:
        return {}
    try:
        entries = parse_json(read_text(cache_dir / DIGESTS_FILE))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and is_entry(entry)}


def is_entry(entry: list) -> bool:
    """Whether a list has the form of a mark and a digest."""
    return len(entry) == 6 and isinstance(entry[-1], str) and len(entry[-1]) == 64


def write_digest(cache_dir: Path, path: str, entry: list) -> None:
    """Add one digest. Replaces the whole file, so that a reader or a crash never sees half of it."""
    try:
        write_text(cache_dir / DIGESTS_FILE, json.dumps(read_digests(cache_dir) | {path: entry}, indent=1))
    except OSError as error:  # a digest that is not cached costs seconds, never a video
        log.warning("the digest of %s is not remembered: %s cannot be written (%s)", path, cache_dir, error)
