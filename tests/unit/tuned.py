"""Tiny tunings that several tests share; also run as a program, to be killed or to be one of several processes.

python tuned.py FOLDER STEPS RECORD
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
from longlive.tune.adapter import learning
from longlive.tune.config import LearnConfig, ModelConfig, RunConfig, StreamConfig, TuneConfig
from longlive.tune.run import run
from longlive.tune.stream import Codec
from longlive.tune.tuning import EmbeddedPair, Parts, Tuning

VAE = Path(__file__).parents[1] / "reference" / "vae.safetensors"
CONFIG = TuneConfig(
    model=ModelConfig(miniature=True),
    rollout=RolloutConfig(window=9, sink=3, positions=Positions.UNBOUNDED),
    stream=StreamConfig(clip=9, length=27, anchored_on=2),
    learn=LearnConfig(rank=4, alpha=4, rate=1e-3, critic_rate=1e-3, ratio=2, precision="fp32", average=0.5,
                      average_from=1, checkpointing=False),
    run=RunConfig(steps=6, save_every=1, offload=False),
)  # fmt: skip


def trees() -> tuple[WanModel, WanModel, WanModel]:
    one, two, three = (tiny.model(seed=seed).tree for seed in (0, 1, 2))
    return one, two, three  # type: ignore[return-value]


def vae() -> WanVAE:
    weights = {name.removeprefix("sd."): x for name, x in load_file(VAE).items() if name.startswith("sd.")}
    return WanVAE.of_weights(weights)


def parts(**changes) -> Parts:
    student, critic, teacher = trees()
    pairs = tuple(EmbeddedPair(tiny.prompt(i).embedding[0], tiny.prompt(10 + i).embedding[0][:3]) for i in range(5))
    fields = {
        "student": student,
        "critic": critic,
        "teacher": teacher,
        "codec": Codec.of_vae(vae()),
        "pairs": pairs,
        "unprompted": torch.zeros(1, tiny.TEXT_DIM),
        "shape_CHW": (16, 2, 4),
    }
    return Parts(**(fields | changes))


def tuning(config: TuneConfig = CONFIG, **changes) -> Tuning:
    AcceleratorState._reset_state(True)
    return Tuning(parts(**changes), config, Accelerator(cpu=True))


def with_learn(**changes) -> TuneConfig:
    return replace(CONFIG, learn=replace(CONFIG.learn, **changes))


class Recorder:
    """The figures and gradients of every step of a tuning."""

    def __init__(self, of: Tuning) -> None:
        self.found: dict[str, torch.Tensor] = {}
        for name, optimizer, tree in (
            ("student", of.student_optimizer, of.parts.student),
            ("critic", of.critic_optimizer, of.parts.critic),
        ):
            optimizer.step = self.recorded(name, optimizer.step, of, tree)

    def recorded(self, name, step, of, tree):
        def stepped():
            for key, weight in learning(tree).items():
                self.found[f"{of.num_steps}.{name}.{key}"] = weight.grad.clone()
            step()

        return stepped

    def watch(self, step: int, figures: dict[str, float]) -> None:
        for name in ("student", "critic", "distance"):
            if name in figures:
                self.found[f"{step}.{name}"] = torch.tensor(figures[name])


def main(folder: str, steps: str, record: str, batch: str = "1") -> None:
    torch.set_num_threads(1)
    config = replace(with_learn(batch=int(batch)), run=replace(CONFIG.run, steps=int(steps)))
    one = Tuning(parts(), config, Accelerator(cpu=True))
    recorder = Recorder(one)
    run(one, Path(folder), watch=recorder.watch)
    if record != "none" and one.accelerator.is_main_process:
        save_file(recorder.found, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
