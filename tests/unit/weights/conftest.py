"""Fixtures of the tests of weights files and adapters: the recorded weights, the recorded adapter."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_loras import cut_prefix, save_tensors
from tiny_weights import CAUSAL, REFERENCE

from longlive.weights.lora import Lora


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


@pytest.fixture(scope="module")
def recorded():
    return load_file(REFERENCE / "lora.safetensors")


@pytest.fixture(scope="module")
def adapter(recorded):
    """The recorded adapter, 40 tensors in PEFT's spelling."""
    return cut_prefix("lora.", recorded)


@pytest.fixture
def lora(adapter, tmp_path):
    return Lora.read(save_tensors(tmp_path, adapter))
