"""A sample video by the student as it is now, to watch a tuning. If it fails, the tuning continues.

Dimension key: B videos, F pixel frames, H rows and W columns of pixels.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LongLiveError
from ..model.causal import CausalWan
from ..rollout.sampler import Sampler
from ..session.prompt import Prompt
from ..session.session import Session
from ..units import PIXELS_PER_CELL
from ..video.writer import VideoWriter
from .adapter import find_trainable
from .parts import stack_embeddings
from .trainer import Trainer

log = logging.getLogger(__name__)

SAMPLE_BLOCKS = 6  # under each of the two prompts


def write_sample(trainer: Trainer, path: Path) -> None:
    """Write a sample video. A failure is logged and does not end the tuning."""
    try:
        with VideoWriter(path) as writer:
            for pixels in render_sample(trainer):
                writer.write(pixels)
    except (LongLiveError, OSError, torch.OutOfMemoryError) as error:
        log.warning("no sample video: %s", error)


@torch.no_grad()
def render_sample(trainer: Trainer, *, seed: int = 0) -> Iterator[Tensor]:
    """Yield the pixels [B, F, 3, H, W] of a video by the student: the first pair, with a switch in the middle."""
    pair, (channels, rows, columns) = trainer.parts.pairs[0], trainer.parts.shape_CHW
    model = CausalWan.of_tree(trainer.parts.student)
    first, second = (Prompt.of(stack_embeddings([half])) for half in (pair.first, pair.second))
    video = Session.start(
        first,
        model="tuning",
        config=trainer.config.rollout,
        height=rows * PIXELS_PER_CELL,
        width=columns * PIXELS_PER_CELL,
        seed=seed,
        dtype=model.dtype,
        channels=channels,
    )
    decoder = trainer.parts.codec.decoder()
    with use_average(trainer), trainer.accelerator.autocast(), Sampler(model) as sampler:
        for prompt in (first, second):
            for longer in sampler.extend(video.switched_to(prompt), SAMPLE_BLOCKS):
                video = longer
                yield decoder.push(video.blocks[-1])
    yield decoder.flush()


@contextmanager
def use_average(trainer: Trainer) -> Iterator[None]:
    """Give the student its averaged weights, if there are any, until the block ends."""
    trainable = find_trainable(trainer.parts.student)
    weights = {name: weight for name, weight in trainable.items() if name in trainer.average}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(trainer.average[name])
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.copy_(kept[name])
