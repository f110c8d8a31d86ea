"""Runs a training to its end, however often it is stopped; one checkpoint file holds all it resumes from.

A training draws nothing from a running generator: step n of a seed sees the same clips and the same noise in any
process. So a resumed training gives the weights of an uninterrupted one, bit for bit on a CPU.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import WeightsError
from ...files import PART
from ...tuning.metrics_log import MetricsLog
from ...tuning.optimizer_state import join_states, select_state
from ...weights.tensor_file import write_tensor_file
from .optimizer import Optimizer

log = logging.getLogger(__name__)

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 25  # steps
RECIPE = "longlive_recipe"  # in the metadata of what a training writes


class Recipe(Protocol):
    """How something is trained."""

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> float: ...


RecipeT = TypeVar("RecipeT", bound=Recipe)


class Training(Protocol):
    """Something that is trained step by step."""

    num_steps: int

    @property
    def recipe(self) -> Recipe: ...

    @property
    def done(self) -> bool: ...
    def step(self) -> dict[str, float]: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: dict[str, Tensor], num_steps: int) -> None: ...


class ModuleTraining(Generic[RecipeT]):
    """What the trainings of modules share: their state, and the end of a step. A subclass adds `step`."""

    def __init__(self, recipe: RecipeT, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
        self.recipe, self.num_steps = recipe, 0
        self.modules, self.optimizer = modules, optimizer

    @property
    def done(self) -> bool:
        return self.num_steps >= self.recipe.steps

    def finish_step(self) -> None:
        """Apply the gradients and count the step."""
        self.optimizer.step(choose_rate(self.recipe, self.num_steps))
        self.num_steps += 1

    def state(self) -> dict[str, Tensor]:
        """Everything to resume from, by name."""
        states = {name: dict(module.state_dict()) for name, module in self.modules.items()}
        return join_states({**states, "optimizer": self.optimizer.state()})

    def restore(self, state: dict[str, Tensor], num_steps: int) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(select_state(state, name))
        self.optimizer.restore(select_state(state, "optimizer"))
        self.num_steps = num_steps


def train(
    training: Training,
    folder: Path,
    name: str,
    *,
    save_every: float = SAVE_EVERY,
    on_save: Callable[[], object] = lambda: None,
) -> None:
    """Train to the end, from the checkpoint in `folder` if there is one; write figures to `name`.jsonl.

    `on_save` is called after each checkpoint. Raises WeightsError for a checkpoint that is damaged or of another
    recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f".*{PART}"):  # left by a training that was killed
        unfinished.unlink()
    path, metrics_log = folder / f"{name}.state.safetensors", MetricsLog(folder / f"{name}.jsonl")
    check_recipe(path, training.recipe)
    if path.exists():
        with safe_open(path, "pt") as file:
            training.restore({key: file.get_tensor(key) for key in file.keys()}, int(file.metadata()["steps"]))
        log.info("%s: resumed at step %d", name, training.num_steps)
    metrics_log.truncate(training.num_steps)
    started = saved = time.monotonic()
    figures: dict[str, list[float]] = {}
    while not training.done:
        for key, value in training.step().items():
            figures.setdefault(key, []).append(value)
        if training.num_steps % LOG_EVERY == 0:
            means = {key: round(sum(values) / len(values), 4) for key, values in figures.items()}
            log.info("%s: step %d, %s, %.0f s", name, training.num_steps, means, time.monotonic() - started)
            metrics_log.add(training.num_steps, means)
            figures.clear()
        if training.done or time.monotonic() - saved > save_every:
            state = {key: value.contiguous() for key, value in training.state().items()}
            write_tensor_file(path, state, {"steps": str(training.num_steps), RECIPE: str(training.recipe)})
            saved = time.monotonic()
            on_save()


def check_recipe(path: Path, recipe: object) -> None:
    """Raise WeightsError if the file exists and another recipe made it, or if it cannot be read."""
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(RECIPE)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; delete it to make it again") from error
    if found != str(recipe):
        raise WeightsError(
            f"{path} was made with another recipe ({found}) than the one given ({recipe}); "
            f"train in another --folder, or delete this file"
        )


def choose_rate(recipe: Recipe, step: int) -> float:
    """Choose the learning rate of a step: a short rise, a plateau, and a linear fall to zero."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, left)
