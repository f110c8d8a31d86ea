"""The parts of a tuning: three networks, a VAE and embedded prompt pairs.

Dimension key: B videos, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import DataError, TuningError
from ..model.wan import WanModel
from .streaming import Codec


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """A prompt pair as embeddings [L, D] on the CPU, without trailing zero rows."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningParts:
    """All that a tuning works with. It changes the student and the critic in place.

    Raises DataError without prompt pairs, and TuningError for networks of different latent spaces or text widths.
    """

    student: WanModel
    critic: WanModel
    teacher: WanModel
    codec: Codec
    pairs: Sequence[EmbeddedPair]
    unprompted: Tensor  # embedding [L, D] of the negative prompt
    shape_CHW: tuple[int, int, int]  # of a frame

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("there are no prompts to tune on; give at least one")
        trees = (self.student, self.critic, self.teacher)
        sizes = {(tree.in_dim, tree.out_dim, tree.patch_size) for tree in trees}
        if len(sizes) > 1:
            raise TuningError(
                f"the teacher works in another latent space: student, critic and teacher have channels and patches "
                f"{sorted(sizes)}; use a teacher of the same family (Wan2.1, 16 channels)"
            )
        widths = {tree.text_dim for tree in trees}
        if len(widths) > 1:
            raise TuningError(f"the networks read prompts of different widths, {sorted(widths)}; use one text encoder")


def stack_embeddings(embeddings: list[Tensor]) -> Tensor:
    """Stack embeddings of different lengths into one batch [B, L, D], padded with the zero rows a short prompt has."""
    rows = max(len(embedding) for embedding in embeddings)
    return torch.stack([nn.functional.pad(embedding, (0, 0, 0, rows - len(embedding))) for embedding in embeddings])
