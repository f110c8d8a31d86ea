"""The miniature's files: weights under released names, loaded like any Wan weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ConfigError, WeightsError
from ..model.causal import CausalWan
from ..model.vae import WanVAE
from ..weights.load import load_model
from ..weights.load_vae import load_vae
from .text import MiniatureText
from .world import SIZE

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DIT = WEIGHTS_FOLDER / "longlive_miniature.safetensors"
VAE = WEIGHTS_FOLDER / "longlive_miniature_vae.safetensors"
ROLLING_LORA = WEIGHTS_FOLDER / "longlive_miniature_rolling.safetensors"
TEACHER = WEIGHTS_FOLDER / "longlive_miniature_teacher.safetensors"


@dataclass(frozen=True, slots=True)
class Miniature:
    """The miniature's model, VAE and text encoder."""

    model: CausalWan
    vae: WanVAE
    text: MiniatureText


def load_miniature(
    *, lora: Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Miniature:
    """Load the miniature, with an adapter if given. Raises WeightsError for a missing or damaged file."""
    check_present(DIT, VAE)
    tree, _ = load_model(DIT, lora=lora, dtype=dtype, device=device)
    return Miniature(CausalWan.of_tree(tree), load_vae(VAE, device=device, dtype=dtype), MiniatureText())


def check_miniature_size(width: int, height: int) -> None:
    """Raise ConfigError for a size that the miniature was not trained for."""
    if (width, height) != (SIZE, SIZE):
        raise ConfigError(
            f"the miniature makes {SIZE} x {SIZE} pixels and nothing else, not {width} x {height}; "
            f"set width and height to {SIZE}"
        )


def check_present(*paths: Path) -> None:
    """Raise WeightsError if one of these files is missing."""
    for path in paths:
        if not path.is_file():
            raise WeightsError(
                f"the miniature's file {path} is missing; it is part of the pack, so install the pack again"
            )
