"""Fixtures of the tests of commands: a tiny network, and a way to run `longlive render` on a script."""

import json
from pathlib import Path

import pytest
from render_runs import make_command
from safetensors.torch import load_file, save_file

from longlive.cli.main import main

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny network that reads the 16 channels of the tiny umT5."""
    state = load_file(REFERENCE / "weights_causal.safetensors")
    state["text_embedding.0.weight"] = state["text_embedding.0.weight"][:, :16].contiguous()
    path = tmp_path_factory.mktemp("weights") / "longlive_tiny.safetensors"
    save_file(state, path, {"geometry": json.dumps({"num_heads": 2})})
    return path


@pytest.fixture
def render(tmp_path, weights, pipeline, monkeypatch):
    """Run `longlive render` on a script into a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def render(script: str, name: str, *more: str) -> int:
        (tmp_path / "story.txt").write_text(script, encoding="utf-8")
        return main([*make_command(tmp_path, weights, pipeline, name), *more])

    return render
