"""Runs a training to its end, however often it is stopped: one file holds all there is to resume from.

Nothing in a training is drawn from a running generator: step n of a seed sees the same films and the same noise in
whichever process, so a resumed training gives the weights of an uninterrupted one, bit for bit on a CPU.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...curve import Curve
from ...errors import CheckpointError
from ...files import PART
from ...store import write_atomically

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


def train(
    training: Training,
    folder: Path,
    name: str,
    *,
    save_every: float = SAVE_EVERY,
    look: Callable[[], object] = lambda: None,
) -> None:
    """Train to the end, from `folder` if it holds a state of it; figures go to `name`.jsonl.

    `look` is called whenever the state has been written. Raises CheckpointError for a state that is damaged or of
    another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part_written in folder.glob(f".*{PART}"):  # by a training that was killed there
        part_written.unlink()
    path, curve = folder / f"{name}.state.safetensors", Curve(folder / f"{name}.jsonl")
    made_with(path, training.recipe)
    if path.exists():
        with safe_open(path, "pt") as file:
            training.restore({key: file.get_tensor(key) for key in file.keys()}, int(file.metadata()["steps"]))
        log.info("%s: resumed at step %d", name, training.num_steps)
    curve.cut(training.num_steps)
    begun = saved = time.monotonic()
    figures: dict[str, list[float]] = {}
    while not training.done:
        for key, value in training.step().items():
            figures.setdefault(key, []).append(value)
        if training.num_steps % LOG_EVERY == 0:
            means = {key: round(sum(values) / len(values), 4) for key, values in figures.items()}
            log.info("%s: step %d, %s, %.0f s", name, training.num_steps, means, time.monotonic() - begun)
            curve.add(training.num_steps, means)
            figures.clear()
        if training.done or time.monotonic() - saved > save_every:
            state = {key: value.contiguous() for key, value in training.state().items()}
            write_atomically(path, state, {"steps": str(training.num_steps), RECIPE: str(training.recipe)})
            saved = time.monotonic()
            look()


def made_with(path: Path, recipe: object) -> None:
    """Refuse to go on from a file, where there is one, that another recipe made. Raises CheckpointError."""
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(RECIPE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; delete it, and its step is made anew") from error
    if found != str(recipe):
        raise CheckpointError(
            f"{path} was made with another recipe ({found}) than is asked for ({recipe}); "
            f"train in another --folder, or delete this one"
        )


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: a short rise, a plateau, and a line down to zero."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, left)
