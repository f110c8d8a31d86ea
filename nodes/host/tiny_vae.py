"""Tiny VAEs (TAEHV) that ComfyUI loaded, decoded by our own stream over their weights.

ComfyUI decodes whole clips with them and forgets what the network saw. It takes a file in float16 for HunyuanVideo's
and scales latents for that; and its previews feed `lighttaew2_1` with the network's latents, not the VAE's.
"""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import comfy.sd
import comfy.taesd.taehv
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...longlive.errors import WeightsError
from ...longlive.model.tiny_vae import TINY_LATENTS_PER_PASS, LatentSpace, TinyDecoder, TinyVAE
from ...longlive.weights.load_decoder import find_latent_space
from .loading import find_file_name
from .model import to_host_axes
from .vae_use import estimate_bytes, use_vae

log = logging.getLogger(__name__)

VALUES_PER_CELL = 40_000  # most that a pass of three latents holds at once: 31,000 counted, and room for kernels
PREVIEW_FORMAT = "JPEG"
PREVIEW_NAME, OTHER_PREVIEW_NAME = "lighttaew2_1", "taew2_1"  # the file that ComfyUI looks for; the other release


class LatentSpaceChoice(StrEnum):
    """What a user chooses for a tiny VAE."""

    AUTO = "auto"
    NETWORK = LatentSpace.NETWORK.value
    VAE = LatentSpace.VAE.value


class Previewer(Protocol):
    """Makes a picture of latents in two parts, with a copy to the CPU between them."""

    def prepare(self, latents_BFCHW: Tensor, /) -> Tensor:
        """Compute on the latents' device what the picture is made of."""
        ...

    def draw(self, prepared: Tensor, /) -> tuple:
        """Return what ComfyUI's progress bar takes, from a copy on the CPU: a format, an image, its largest size."""
        ...


class HostTinyDecoder(TinyDecoder):
    """A `TinyDecoder` over the weights of ComfyUI's tiny VAE, which makes ComfyUI free memory before each push."""

    def __init__(self, vae: comfy.sd.VAE, space: LatentSpace, *, at_once: int = TINY_LATENTS_PER_PASS) -> None:
        weights = vae.get_sd()
        super().__init__(TinyVAE.of_weights(weights, space, device=vae.device, dtype=vae.vae_dtype), at_once=at_once)
        self.host_vae = vae

    @property
    def identity(self) -> str:
        return f"{super().identity}, torch {torch.__version__}"

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        with use_vae(self.host_vae, estimate_bytes(self.host_vae, estimate_tiny_bytes, latents_BFCHW)):
            return super().push(latents_BFCHW)


class HostPreviewer:
    """Pictures of the newest frame by ComfyUI's previewer, from a copy of the latents."""

    def __init__(self, previewer: latent_preview.LatentPreviewer) -> None:
        self.previewer = previewer

    def prepare(self, latents_BFCHW: Tensor) -> Tensor:
        return to_host_axes(latents_BFCHW[:, -1:])

    def draw(self, x0_BCFHW: Tensor) -> tuple:
        return self.previewer.decode_latent_to_preview_image(PREVIEW_FORMAT, x0_BCFHW)


class TinyPreviewer:
    """Pictures of the newest frame by a tiny VAE, from the right latents."""

    def __init__(self, vae: comfy.sd.VAE, space: LatentSpace) -> None:
        self.decoder = HostTinyDecoder(vae, space, at_once=1)

    def prepare(self, latents_BFCHW: Tensor) -> Tensor:
        pixels_BFCHW = self.decoder.push(latents_BFCHW[:1, -1:])
        self.decoder.flush()
        return pixels_BFCHW[0, -1].movedim(0, -1)

    def draw(self, pixels_HWC: Tensor) -> tuple:
        return PREVIEW_FORMAT, latent_preview.preview_to_image(pixels_HWC), latent_preview.MAX_PREVIEW_RESOLUTION


def is_host_tiny_vae(vae: comfy.sd.VAE) -> bool:
    return isinstance(vae.first_stage_model, comfy.taesd.taehv.TAEHV)


def create_tiny_decoder(vae: comfy.sd.VAE, choice: str, *, at_once: int = TINY_LATENTS_PER_PASS) -> HostTinyDecoder:
    """Create a decoder over a tiny VAE. Raises WeightsError for one that is not Wan2.1's."""
    return HostTinyDecoder(vae, choose_latent_space(vae, choice), at_once=at_once)


def choose_latent_space(vae: comfy.sd.VAE, choice: str) -> LatentSpace:
    """Choose which latents a tiny VAE takes, if the user did not: by the name of its file, else by its precision.

    taew2_1 is released in float16, lighttaew2_1 is not. Releases of ComfyUI before 0.30 do not keep the name.
    """
    if choice != LatentSpaceChoice.AUTO:
        return LatentSpace(choice)
    name = find_file_name(vae.patcher)
    if space := find_latent_space(name):
        log.info("%s decodes latents of the %s, by its name", name, space)
        return space
    space = LatentSpace.NETWORK if is_of_float16(vae) else LatentSpace.VAE
    log.info(
        "the tiny VAE%s decodes latents of the %s, by its precision; if the colours are wrong, choose another "
        "latent_space in LongLive Decode",
        f" {name}" if name else "",
        space,
    )
    return space


def is_of_float16(vae: comfy.sd.VAE) -> bool:
    """Whether the file held float16: ComfyUI then takes it for HunyuanVideo's and keeps that one's scale of latents."""
    return getattr(vae.first_stage_model, "latent_format", None) is not None


def estimate_tiny_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Estimate the bytes that a pass needs for latents [B C F H W]."""
    batch, _, _, rows, columns = shape
    return batch * rows * columns * VALUES_PER_CELL * dtype.itemsize


def create_previewer(patcher: ModelPatcher) -> Previewer | None:
    """Create the previewer of the method that the user chose: ComfyUI's or, by a tiny VAE, one that scales right."""
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    try:
        if type(previewer) is latent_preview.TAEHVPreviewerImpl:
            return TinyPreviewer(previewer.taesd, LatentSpace.VAE)
        if type(previewer) is latent_preview.Latent2RGBPreviewer and (file := find_other_preview_file(patcher)):
            vae = comfy.sd.VAE(comfy.utils.load_torch_file(file, safe_load=True))
            return TinyPreviewer(vae, LatentSpace.NETWORK)
    except WeightsError as error:
        log.warning("previews are ComfyUI's own: %s", error)
    return previewer and HostPreviewer(previewer)


def find_tiny_file() -> str | None:
    """Find the file of a tiny VAE for Wan2.1 among those of ComfyUI's previews."""
    names = sorted(folder_paths.get_filename_list("vae_approx"))
    found = next((name for name in names if find_latent_space(Path(name).name)), None)
    return found and folder_paths.get_full_path("vae_approx", found)


def find_other_preview_file(patcher: ModelPatcher) -> str | None:
    """Find taew2_1 where ComfyUI looks for lighttaew2_1 only, if the user chose previews by a tiny VAE."""
    wanted = getattr(patcher.model.latent_format, "taesd_decoder_name", None)
    if args.preview_method != LatentPreviewMethod.TAESD or wanted != PREVIEW_NAME:
        return None
    names = folder_paths.get_filename_list("vae_approx")
    found = next((name for name in names if Path(name).name.startswith(OTHER_PREVIEW_NAME)), None)
    return found and folder_paths.get_full_path("vae_approx", found)
