"""Files as this pack writes them: whole or not at all, also after a crash or a power cut.

Knows paths and bytes, no tensor and no format.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

PART = ".part"  # what a file is called while it is written


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of an empty file to write; put it in the place of `path` when the block ends well.

    `path` then holds the old file or the whole new one, never a part, also after a power cut: the new file and its
    folder are flushed to the disk. After an error nothing is left behind. Raises OSError where the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{uuid.uuid4().hex}{PART}"
    try:
        part.touch()
        mode = part.stat().st_mode  # some writers, such as safetensors, make files that only their owner may read
        yield part
        part.chmod(mode)
        flush(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the line ends it has. Raises OSError where the disk refuses."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
