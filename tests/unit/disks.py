"""Folders that nobody may write to or enter, and files that may not grow, for tests of a disk that refuses."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder and all in it read-only. Root, who could still write, becomes another user until the block ends."""
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with become_another_user():
            yield
    finally:
        for path in everything:
            if path.exists():
                path.chmod(0o755)


@contextmanager
def close_folder(folder: Path) -> Iterator[None]:
    """Make a folder one that nobody may enter, also root, who becomes another user until the block ends."""
    folder.parent.chmod(0o755)
    folder.chmod(0)
    try:
        with become_another_user():
            yield
    finally:
        folder.chmod(0o755)


@contextmanager
def limit_file_size(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def become_another_user() -> Iterator[None]:
    """Make root another user until the block ends; others stay who they are."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
