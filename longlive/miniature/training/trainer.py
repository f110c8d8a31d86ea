"""Runs a training to its end, however often it is stopped: one file holds all there is to resume from.

Nothing in a training is drawn from a running generator: step n of a seed sees the same films and the same noise in
whichever process, so a resumed training gives the weights of an uninterrupted one, bit for bit on a CPU.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor

from ...store import write_atomically

log = logging.getLogger(__name__)

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 25  # steps


class Training(Protocol):
    """Something that is trained step by step."""

    num_steps: int

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

    `look` is called whenever the state has been written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, curve = folder / f"{name}.state.safetensors", folder / f"{name}.jsonl"
    if path.exists():
        with safe_open(path, "pt") as file:
            training.restore({key: file.get_tensor(key) for key in file.keys()}, int(file.metadata()["steps"]))
        log.info("%s: resumed at step %d", name, training.num_steps)
        cut(curve, training.num_steps)
    begun = saved = time.monotonic()
    figures: dict[str, list[float]] = {}
    while not training.done:
        for key, value in training.step().items():
            figures.setdefault(key, []).append(value)
        if training.num_steps % LOG_EVERY == 0:
            means = {key: round(sum(values) / len(values), 4) for key, values in figures.items()}
            line = {"step": training.num_steps, **means}
            log.info("%s: %s, %.0f s", name, line, time.monotonic() - begun)
            with curve.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            figures.clear()
        if training.done or time.monotonic() - saved > save_every:
            state = {key: value.contiguous() for key, value in training.state().items()}
            write_atomically(path, state, {"steps": str(training.num_steps)})
            saved = time.monotonic()
            look()


def cut(curve: Path, num_steps: int) -> None:
    """Drop the lines of steps that will be made again."""
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    kept = [f"{line}\n" for line in lines if json.loads(line)["step"] <= num_steps]
    curve.write_text("".join(kept), encoding="utf-8")


def joined(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """One state of several, each under its name."""
    return {f"{name}.{key}": value for name, tensors in parts.items() for key, value in tensors.items()}


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What `joined` took under `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
