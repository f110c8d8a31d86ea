"""Fixtures of the tests of tuning: one thread, so that numbers are the same everywhere, and files to read."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _use_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_file(tmp_path):
    """Write a file of a name and content; return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
