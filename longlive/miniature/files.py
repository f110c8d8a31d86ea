"""The miniature's files: weights in released names, as any Wan file, read by the loaders that read those."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError, ConfigError
from ..model.causal import CausalWan
from ..model.checkpoint import load_model
from ..model.vae import WanVAE
from ..model.vae_file import load_vae
from .text import MiniatureText
from .world import SIZE

WEIGHTS = Path(__file__).parent / "weights"
DIT = WEIGHTS / "longlive_miniature.safetensors"
VAE = WEIGHTS / "longlive_miniature_vae.safetensors"
TEACHER = WEIGHTS / "longlive_miniature_teacher.safetensors"


@dataclass(frozen=True, slots=True)
class Miniature:
    """The model, the VAE and the text encoder that belong together."""

    model: CausalWan
    vae: WanVAE
    text: MiniatureText


def load_miniature(
    *, lora: Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Miniature:
    """Load the miniature, with an adapter where one is given. Raises CheckpointError for a missing or damaged file."""
    present(DIT, VAE)
    tree, _ = load_model(DIT, lora=lora, dtype=dtype, device=device)
    return Miniature(CausalWan.of_tree(tree), load_vae(VAE, device=device, dtype=dtype), MiniatureText())


def check_size(width: int, height: int) -> None:
    """Refuse pixels that the miniature was not trained for. Raises ConfigError."""
    if (width, height) != (SIZE, SIZE):
        raise ConfigError(
            f"the miniature makes {SIZE} x {SIZE} pixels and nothing else, not {width} x {height}; "
            f"set width and height to {SIZE}"
        )


def present(*paths: Path) -> None:
    """Refuse to go on without these files. Raises CheckpointError."""
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"the miniature's file {path} is missing; it is part of the pack, so install the pack again"
            )
