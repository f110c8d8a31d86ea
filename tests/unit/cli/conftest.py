"""What the tests of several commands share."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny network that reads the 16 channels of the tiny umT5."""
    state = load_file(REFERENCE / "weights_causal.safetensors")
    state["text_embedding.0.weight"] = state["text_embedding.0.weight"][:, :16].contiguous()
    path = tmp_path_factory.mktemp("weights") / "longlive_tiny.safetensors"
    save_file(state, path, {"geometry": json.dumps({"num_heads": 2})})
    return path
