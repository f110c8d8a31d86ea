"""Fixtures of the tests of weights files."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_weights import CAUSAL


@pytest.fixture(scope="module")
def base():
    return load_file(CAUSAL)


@pytest.fixture
def save(tmp_path):
    """Write an object to a file by its suffix and return the path."""

    def write(name, content, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".safetensors"):
            save_file(content, path, **options)
        else:
            torch.save(content, path, **options)
        return path

    return write
