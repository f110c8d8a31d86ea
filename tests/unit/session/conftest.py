"""A video, the session file it is saved in, and a folder for stores."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from saved_sessions import MODEL

from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Boundary
from longlive.session.session import Session
from longlive.session.session_file import save_session


@pytest.fixture(scope="module")
def video() -> Session:
    """A video with one switch among its blocks and another after the last block."""
    trunk = Sampler(MODEL).sample(tiny.session(), 5)
    trunk = Sampler(MODEL).sample(trunk.switched_to(tiny.prompt(1), Boundary.RENEW), 1)
    return trunk.switched_to(tiny.prompt(2), Boundary.KEEP)


@pytest.fixture
def path(tmp_path, video) -> Path:
    path = tmp_path / "video.safetensors"
    save_session(video, path)
    return path


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
