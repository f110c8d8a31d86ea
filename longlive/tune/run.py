"""Runs a tuning to its end, however often it is stopped: checkpoints, curves, samples, and the adapter it makes."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..config import PIXELS_PER_CELL
from ..curve import Curve
from ..errors import LongLiveError, TuningError
from ..model.causal import CausalWan
from ..sampler import Sampler
from ..session import Prompt, Session
from ..store import write_atomically
from ..video import VideoWriter
from .adapter import export, learning, lora_of
from .checkpoints import Checkpoints
from .config import Precision, TuneConfig
from .tuning import Tuning, stacked

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

SAMPLE_BLOCKS = 6  # under either prompt
CURVE = "curve.jsonl"
ADAPTER = "adapter.safetensors"
TUNED = "longlive_tuned_steps"  # in the metadata of what a tuning makes
WEIGHTS = "weights.safetensors"  # where all weights are tuned


def run(
    tuning: Tuning, folder: Path, *, watch: Callable[[int, dict[str, float]], object] = lambda step, figures: None
) -> Path:
    """Tune to the last step, going on from whatever `folder` holds; the file that comes out.

    `watch` is called after every step with its number and figures; whatever it raises ends the tuning with a
    checkpoint. Raises TuningError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints, curve, is_main = Checkpoints(tuning, folder), Curve(folder / CURVE), tuning.accelerator.is_main_process
    options = tuning.config.run
    if checkpoints.resume():
        log.info("resumed at step %d", tuning.num_steps)
    if is_main:
        curve.cut(tuning.num_steps)
    while tuning.num_steps < options.steps:
        begun = time.monotonic()
        figures = tuning.step()
        figures["seconds"] = round(time.monotonic() - begun, 3)
        tuning.accelerator.log(figures, step=tuning.num_steps)
        if is_main:
            curve.add(tuning.num_steps, figures)
        try:
            watch(tuning.num_steps, figures)
        except BaseException:
            checkpoints.save()
            raise
        if tuning.num_steps % options.save_every == 0 or tuning.num_steps == options.steps:
            checkpoints.save()
            if is_main:
                exported(tuning, folder)
        if is_main and options.sample_every and tuning.num_steps % options.sample_every == 0:
            write_sample(tuning, folder / f"sample-{tuning.num_steps:06d}.mp4")
    return exported(tuning, folder) if is_main else folder / ADAPTER


def exported(tuning: Tuning, folder: Path) -> Path:
    """Write what has been learnt so far: an adapter, or all weights. Raises TuningError where the disk refuses."""
    about = {TUNED: str(tuning.num_steps)}
    path = folder / (ADAPTER if tuning.config.learn.rank else WEIGHTS)
    try:
        if tuning.config.learn.rank:
            export(lora_of(tuning.learnt(), tuning.config.learn.alpha), path, about)
        else:
            weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in tuning.learnt().items()}
            write_atomically(path, weights, about)
    except (OSError, SafetensorError) as error:
        raise TuningError(f"{path} cannot be written: {error}; free some space, the checkpoint is good") from error
    return path


def accelerator_of(config: TuneConfig, folder: Path, *, on_cpu: bool = False) -> "Accelerator":
    """What spreads a tuning over GPUs and machines. Raises TuningError where `accelerate` is missing.

    Autocast remembers no weights: within a step they change, and a cast made without a graph must not be met with one.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import AutocastKwargs
    except ImportError as error:
        raise TuningError(
            f"tuning needs accelerate, which does not load ({error}); pip install peft accelerate"
        ) from error
    logged = config.run.tensorboard
    if logged and find_spec("tensorboard") is None:
        raise TuningError("tensorboard is not installed; pip install tensorboard, or set tensorboard = false")
    accelerator = Accelerator(
        mixed_precision="bf16" if config.learn.precision is Precision.HALF else "no",
        cpu=on_cpu,
        log_with="tensorboard" if logged else None,
        project_dir=folder if logged else None,
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )
    if logged:
        accelerator.init_trackers("tensorboard")
    return accelerator


@contextmanager
def averaged(tuning: Tuning) -> Iterator[None]:
    """The student with the averaged weights, where there are any."""
    weights = {name: weight for name, weight in learning(tuning.parts.student).items() if name in tuning.average}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tuning.average[name])
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.copy_(kept[name])


@torch.no_grad()
def sample_of(tuning: Tuning, *, seed: int = 0) -> Iterator[Tensor]:
    """The pixels [B F 3 H W] of a video by the student as it is: the first pair, a switch in the middle."""
    pair, (channels, rows, columns) = tuning.parts.pairs[0], tuning.parts.shape_CHW
    model = CausalWan.of_tree(tuning.parts.student)
    first, second = (Prompt.of(stacked([half])) for half in (pair.first, pair.second))
    video = Session.start(
        first,
        model="tuning",
        config=tuning.config.rollout,
        height=rows * PIXELS_PER_CELL,
        width=columns * PIXELS_PER_CELL,
        seed=seed,
        dtype=model.dtype,
        channels=channels,
    )
    decoder = tuning.parts.codec.decoder()
    with averaged(tuning), tuning.accelerator.autocast(), Sampler(model) as sampler:
        for prompt in (first, second):
            for longer in sampler.extend(video.switched_to(prompt), SAMPLE_BLOCKS):
                video = longer
                yield decoder.push(video.blocks[-1])
    yield decoder.flush()


def write_sample(tuning: Tuning, path: Path) -> None:
    """Write a video by the student as it is. One that fails is no reason to end a tuning: it is logged."""
    try:
        with VideoWriter(path) as writer:
            for pixels in sample_of(tuning):
                writer.write(pixels)
    except (LongLiveError, OSError, torch.OutOfMemoryError) as error:
        log.warning("no sample video: %s", error)
