"""Attacks on the checkpoints of a tuning."""

import functools
import random
import tempfile
from pathlib import Path

import mutators
import tiny_tuning
import torch
from harness import Target, expect
from safetensors.torch import load as load_tensors
from torch import Tensor

from longlive.tuning.checkpoints import Checkpoints
from longlive.tuning.trainer import Trainer


@functools.cache
def make_tuning() -> Trainer:
    return tiny_tuning.make_trainer(tiny_tuning.with_run(steps=2))


@functools.cache
def make_checkpoint() -> tuple[bytes, dict[str, Tensor]]:
    """A checkpoint of two steps, and the state it holds."""
    one = make_tuning()
    while one.num_steps < 2:
        one.step()
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(one, Path(folder)).save()
        (path,) = Path(folder).rglob("*.safetensors")
        return path.read_bytes(), {name: tensor.clone() for name, tensor in one.state_dict().items()}


def attack_tuning_checkpoint(draw: random.Random, folder: Path) -> None:
    """A damaged checkpoint is refused, or nothing in it was damaged."""
    whole, state = make_checkpoint()
    path = folder / "checkpoints" / draw.choice(("000002", "000002", "2", "²", "000000", "99999999999"))
    path.mkdir(parents=True)
    if draw.random() < 0.2:
        (folder / "checkpoints" / draw.choice(("000003", "x", "³", "000004.part", "-1"))).mkdir()
    content = mutators.mutate_file(draw, whole, load_tensors(whole))
    (path / "process0.safetensors").write_bytes(content)
    one = make_tuning()
    if not Checkpoints(one, folder).resume():
        return
    found = one.state_dict()
    expect(found.keys() == state.keys(), "other tensors were resumed")
    for name, tensor in state.items():
        expect(torch.equal(found[name], tensor), f"another {name} was resumed")


TARGETS = (Target("tuning checkpoints", 500, attack_tuning_checkpoint),)
