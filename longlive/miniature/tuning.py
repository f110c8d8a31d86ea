"""The networks and prompts to tune the miniature with."""

import logging
from pathlib import Path

import torch

from ..model.text_encoder import HashedWords
from ..tuning.config import DataConfig, TuneConfig
from ..tuning.load import EmbeddedPairs, compute_frame_shape, embed_unpadded, load_network
from ..tuning.parts import TuningParts
from ..tuning.prompt_pairs import PromptPair, read_pairs
from ..tuning.streaming import Codec
from .clips import choose_scene, seed_random
from .files import DIT, TEACHER, check_present, load_miniature
from .world import SIZE

log = logging.getLogger(__name__)

NUM_PAIRS = 512  # where the configuration names no prompts


def load_miniature_parts(config: TuneConfig) -> TuningParts:
    """Load the miniature, its teacher, and its own prompts unless the configuration names some."""
    check_present(DIT, TEACHER)
    model, data, usual = config.model, config.data, DataConfig()
    if (data.width, data.height) not in ((SIZE, SIZE), (usual.width, usual.height)):
        log.warning("width and height are ignored: the miniature's videos are %d x %d", SIZE, SIZE)
    miniature = load_miniature()
    student = load_network(DIT, torch.float32, model.lora)
    critic, teacher = (load_network(path, torch.float32) for path in (Path(model.critic or TEACHER), TEACHER))
    second = Path(data.switched) if data.switched else None
    pairs = read_pairs(Path(data.prompts), second) if data.prompts else make_pairs(NUM_PAIRS)
    return TuningParts(
        student=student,
        critic=critic,
        teacher=teacher,
        codec=Codec.of_vae(miniature.vae),
        pairs=EmbeddedPairs(pairs, miniature.text),
        unprompted=embed_unpadded(HashedWords(), data.negative),
        shape_CHW=compute_frame_shape(SIZE, SIZE),
    )


def make_pairs(count: int) -> tuple[PromptPair, ...]:
    """Make prompt pairs of the miniature's grammar."""
    pairs = []
    for number in range(count):
        draw = seed_random("pair", number)
        pairs.append(PromptPair(str(choose_scene(draw)), str(choose_scene(draw, anywhere=False))))
    return tuple(pairs)
