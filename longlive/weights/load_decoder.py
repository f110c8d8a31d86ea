"""From a file to a decoder of videos: the whole Wan2.1 VAE, or a tiny one, known by its tensors."""

from pathlib import Path

import torch

from ..errors import ConfigError, WeightsError, shorten
from ..model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE, is_tiny_vae
from ..model.vae_streams import ResumableDecoder, StreamingDecoder
from .load_vae import build_vae
from .weights_file import WeightsFile, read_weights_file

NAMES_OF_SPACE = (("lighttae", LatentSpace.VAE), ("taew2_1", LatentSpace.NETWORK))  # the first found in a name decides


def load_decoder(
    path: Path,
    *,
    space: LatentSpace | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ResumableDecoder:
    """Load a decoder from a file of the Wan2.1 VAE, a diffusers folder of it, or the file of a tiny VAE.

    `space` says what a tiny VAE takes; if it is None, the name of the file does. Raises WeightsError for anything else,
    ConfigError for the `space` of a VAE that is not tiny.
    """
    file = read_weights_file(path)
    if is_tiny_vae(file.tensors):
        return TinyDecoder(build_tiny_vae(file, space, device=device, dtype=dtype))
    if space:
        raise ConfigError(f"{file.name} is not a tiny VAE; leave the latent space out")
    return StreamingDecoder(build_vae(file, device=device, dtype=dtype))


def build_tiny_vae(
    file: WeightsFile,
    space: LatentSpace | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> TinyVAE:
    """Build a tiny VAE from a weights file already read. Raises WeightsError."""
    space = space or find_latent_space(file.name)
    if space is None:
        raise WeightsError(
            f"{shorten(file.name)} is a tiny VAE whose name does not say which latents it takes; expected taew2_1 "
            f"(those of the network) or lighttae (those of the VAE) in the name; give the latent space: network or vae"
        )
    return TinyVAE.of_weights(file.tensors, space, device=device, dtype=dtype)


def find_latent_space(name: str) -> LatentSpace | None:
    """Find in the name of a tiny VAE's file which latents it takes: in the file itself nothing says so."""
    return next((space for part, space in NAMES_OF_SPACE if part in name.lower()), None)
