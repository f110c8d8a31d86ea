"""Tiny tunings that several tests share. As a program it is one process of a tuning, which a test may kill.

python tiny_tuning.py FOLDER STEPS RECORD [BATCH]
"""

import sys
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from longlive.config import Positions, RolloutConfig
from longlive.model.vae import WanVAE
from longlive.model.wan import WanModel
from longlive.tuning.adapter import find_trainable
from longlive.tuning.config import LearnConfig, ModelConfig, RunConfig, StreamConfig, TuneConfig
from longlive.tuning.parts import EmbeddedPair, TuningParts
from longlive.tuning.run import run_tuning
from longlive.tuning.streaming import Codec
from longlive.tuning.trainer import Trainer

VAE = Path(__file__).parents[1] / "reference" / "vae.safetensors"
CONFIG = TuneConfig(
    model=ModelConfig(miniature=True),
    rollout=RolloutConfig(window=9, sink=3, positions=Positions.UNBOUNDED),
    stream=StreamConfig(clip=9, length=27, anchored_on=2),
    learn=LearnConfig(rank=4, alpha=4, rate=1e-3, critic_rate=1e-3, ratio=2, precision="fp32", average=0.5,
                      average_from=1, checkpointing=False),
    run=RunConfig(steps=6, save_every=1, offload=False),
)  # fmt: skip


def make_networks() -> tuple[WanModel, WanModel, WanModel]:
    """Make a student, a critic and a teacher."""
    student, critic, teacher = (tiny.model(seed=seed).tree for seed in (0, 1, 2))
    return student, critic, teacher  # type: ignore[return-value]


def load_tiny_vae() -> WanVAE:
    weights = {name.removeprefix("sd."): x for name, x in load_file(VAE).items() if name.startswith("sd.")}
    return WanVAE.of_weights(weights)


def make_parts(**changes) -> TuningParts:
    student, critic, teacher = make_networks()
    pairs = tuple(EmbeddedPair(tiny.prompt(i).embedding[0], tiny.prompt(10 + i).embedding[0][:3]) for i in range(5))
    fields = {
        "student": student,
        "critic": critic,
        "teacher": teacher,
        "codec": Codec.of_vae(load_tiny_vae()),
        "pairs": pairs,
        "unprompted": torch.zeros(1, tiny.TEXT_DIM),
        "shape_CHW": (16, 2, 4),
    }
    return TuningParts(**(fields | changes))


def make_trainer(config: TuneConfig = CONFIG, **changes) -> Trainer:
    """Make a trainer of tiny parts, with changes to them."""
    AcceleratorState._reset_state(True)
    return Trainer(make_parts(**changes), config, Accelerator(cpu=True))


def with_learn(**changes) -> TuneConfig:
    """Change settings of [learn]."""
    return replace(CONFIG, learn=replace(CONFIG.learn, **changes))


def with_run(**changes) -> TuneConfig:
    """Change settings of [run]."""
    return replace(CONFIG, run=replace(CONFIG.run, **changes))


class Recorder:
    """Records the losses and gradients of every step of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.recorded: dict[str, torch.Tensor] = {}
        for name, optimizer, tree in (
            ("student", trainer.student_optimizer, trainer.parts.student),
            ("critic", trainer.critic_optimizer, trainer.parts.critic),
        ):
            optimizer.step = self.wrap_step(name, optimizer.step, trainer, tree)

    def wrap_step(self, name, step, trainer, tree):
        def record_and_step():
            for key, weight in find_trainable(tree).items():
                self.recorded[f"{trainer.num_steps}.{name}.{key}"] = weight.grad.clone()
            step()

        return record_and_step

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        for name in ("student", "critic", "distance"):
            if name in metrics:
                self.recorded[f"{step}.{name}"] = torch.tensor(metrics[name])


def main(folder: str, steps: str, record: str, batch: str = "1") -> None:
    torch.set_num_threads(1)
    config = replace(with_learn(batch=int(batch)), run=replace(CONFIG.run, steps=int(steps)))
    trainer = Trainer(make_parts(), config, Accelerator(cpu=True))
    recorder = Recorder(trainer)
    run_tuning(trainer, Path(folder), watch=recorder.watch)
    if record != "none" and trainer.accelerator.is_main_process:
        save_file(recorder.recorded, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
