"""The network of the host's core, as `benchmarks/side_by_side.py` drives it, beside ours; runs inside a host."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from contenders import Ours, Task
from host_network import HostNetwork
from turns import measure_in_turn

from longlive.model.causal import CausalWan
from longlive.model.wan import Geometry

GEOMETRY = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=256, text_dim=16)


def compare() -> tuple[float, list[str]]:
    """Return how far a window of latents is from ours, relative to their size, and the parts that are measured."""
    task = Task.make(GEOMETRY, (4, 6), dtype=torch.float32)
    ours, theirs = Ours(task, CausalWan.of_tree(task.tree)), HostNetwork(task, Path.cwd())
    _, times = measure_in_turn([ours, theirs], 1)
    found, expected = (torch.cat(each.latents[:4], 1) for each in (theirs, ours))
    return float((found - expected).norm() / expected.norm()), [*times]
