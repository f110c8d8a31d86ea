"""From a file or folder to the VAE: released names as they are, diffusers' names converted to them."""

import re
from pathlib import Path

import torch

from ..model.vae import WanVAE
from .weights_file import WeightsFile, read_weights_file

LAYERS_IN_UP_BLOCK = 4  # three residual blocks and, but for the last level, an upsampler
FROM_DIFFUSERS = (  # applied in order; several may match a name
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: _up(m[1], m[2])),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: _up(m[1], LAYERS_IN_UP_BLOCK - 1)),
    (r"(?<=\d)\.norm1\.", ".residual.0."),
    (r"(?<=\d)\.conv1\.", ".residual.2."),
    (r"(?<=\d)\.norm2\.", ".residual.3."),
    (r"(?<=\d)\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)


def load_vae(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> WanVAE:
    """Load the Wan2.1 VAE from a file of the original release, or from the `vae` folder of a diffusers-format one.

    Raises WeightsError for anything else.
    """
    return build_vae(read_weights_file(path), device=device, dtype=dtype)


def build_vae(file: WeightsFile, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> WanVAE:
    """Build the VAE as `load_vae` does, from a weights file already read."""
    tensors = file.tensors
    if any(name.startswith("post_quant_conv.") for name in tensors):
        tensors = {rename_from_diffusers(name): tensor for name, tensor in tensors.items()}
    return WanVAE.of_weights({name: tensor.clone() for name, tensor in tensors.items()}, device=device, dtype=dtype)


def rename_from_diffusers(name: str) -> str:
    """Convert diffusers' name of a tensor to the one of the original release."""
    for pattern, replacement in FROM_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def _up(level: int | str, layer: int | str) -> str:
    return f".upsamples.{LAYERS_IN_UP_BLOCK * int(level) + int(layer)}."
