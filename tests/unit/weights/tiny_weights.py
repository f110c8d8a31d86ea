"""Tiny weights files for the tests of this folder, and checks of what is read from them."""

from pathlib import Path

import torch

from longlive.weights.load import load_model

REFERENCE = Path(__file__).parents[2] / "reference"
CAUSAL = REFERENCE / "weights_causal.safetensors"
TINY = {"num_heads": 2, "text_len": 8}


def add_prefix(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def make_tensors(*shapes, **named):
    """Make zero tensors by name; a positional name gets an arbitrary shape."""
    return {name: torch.zeros(2, 2) for name in shapes} | {name: torch.zeros(shape) for name, shape in named.items()}


def assert_loads_as(weights, path, **options):
    model, report = load_model(path, **(TINY | options))
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)
    return report


def assert_harmless(error):
    assert len(str(error)) < 1500
    assert str(error).isprintable()
