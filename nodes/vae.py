"""Streaming over the VAE that ComfyUI loaded: blocks of latents in, pixel frames out, in the host's own arithmetic.

Hosts since early 2026 decode the first latent alone and then pairs, older ones each alone; any other cut gives other
pixels. So the cut is found by trying: on a few random latents it must give what the host's decode of the whole gives.
"""

import logging
import math
from contextlib import AbstractContextManager, nullcontext

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..longlive.config import PIXELS_PER_CELL
from ..longlive.errors import CheckpointError
from ..longlive.model.vae import LATENT_CHANNELS, StreamingDecoder, VideoDecoder, WanVAE, cut

log = logging.getLogger(__name__)

HOST_PASSES = (1, 2)  # latents of one pass after the first
TRIAL_FRAMES, TRIAL_CELLS = 5, 4  # the first latent, then two pairs
TOLERANCE = 0.02  # relative; bfloat16 stays below, a wrong cut far above
VIDEO_FRAMES = 5  # the host's estimate of memory takes fewer for an image


def streaming_decoder(vae: comfy.sd.VAE) -> VideoDecoder:
    """A decoder of model-space latents over a ComfyUI VAE. Raises CheckpointError for any VAE but Wan2.1's."""
    refuse_other_vaes(vae)
    shape = 1, TRIAL_FRAMES, LATENT_CHANNELS, TRIAL_CELLS, TRIAL_CELLS
    latents_BFCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole_BFCHW = decode_whole(vae, latents_BFCHW)
    errors = {n: relative_error(HostDecoder(vae, n), latents_BFCHW, whole_BFCHW) for n in HOST_PASSES}
    at_once = min(errors, key=lambda n: errors[n])
    if errors[at_once] <= TOLERANCE:
        return HostDecoder(vae, at_once)

    ours = WanVAE.of_weights(vae.get_sd(), device=vae.device, dtype=vae.vae_dtype)
    if relative_error(StreamingDecoder(ours), latents_BFCHW, whole_BFCHW) > TOLERANCE:
        raise CheckpointError(
            "this ComfyUI decodes video in a way LongLive does not know, and not as Wan2.1 does; "
            "update LongLive, or decode with LongLive Session to Latent and VAE Decode"
        )
    log.warning("this ComfyUI decodes video in passes LongLive does not know: LongLive decodes by its own code instead")
    return StreamingDecoder(ours)


class HostDecoder:
    """A `VideoDecoder` over the host's network: the first latent alone, then `at_once` to a pass; fewer wait.

    The network's memory of the video is a list that belongs to this object, on the VAE's device, until `flush`.
    """

    def __init__(self, vae: comfy.sd.VAE, at_once: int) -> None:
        self.vae, self.at_once = vae, at_once
        self.nothing_BFCHW = torch.empty(1, 0, 3, 0, 0)
        self._forget()

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        if self.waiting_BFCHW is not None:
            latents_BFCHW = torch.cat([self.waiting_BFCHW, latents_BFCHW], dim=1)
        batch, count, _, *cells = latents_BFCHW.shape
        self.nothing_BFCHW = torch.empty(batch, 0, 3, *(PIXELS_PER_CELL * n for n in cells), device=self.vae.device)
        num_waiting = (count - (not self.begun)) % self.at_once if count else 0
        ready_BFCHW, self.waiting_BFCHW = latents_BFCHW.split([count - num_waiting, num_waiting], dim=1)
        return self._decode(ready_BFCHW)

    def flush(self) -> Tensor:
        try:
            return self.nothing_BFCHW if self.waiting_BFCHW is None else self._decode(self.waiting_BFCHW)
        finally:
            self._forget()

    def _forget(self) -> None:
        self.begun = False
        self.waiting_BFCHW: Tensor | None = None
        num_slots = sum(1 for _ in self.vae.first_stage_model.decoder.modules())  # more than any host counts
        self.past: list = [None] * num_slots

    @torch.no_grad()
    def _decode(self, latents_BFCHW: Tensor) -> Tensor:
        pieces = cut(latents_BFCHW, begun=self.begun, at_once=self.at_once)
        if not pieces:
            return self.nothing_BFCHW
        load(self.vae, latents_BFCHW)
        with on_device(self.vae):
            return torch.cat([self._decode_pass(piece) for piece in pieces], dim=1)

    def _decode_pass(self, latents_BFCHW: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        network = self.vae.first_stage_model
        z_BCTHW = network.conv2(to_vae_space(self.vae, latents_BFCHW))
        pixels = network.decoder(z_BCTHW, feat_cache=self.past, feat_idx=[0])
        self.begun = True
        return as_pixels(torch.cat(pixels, dim=2) if isinstance(pixels, list) else pixels)


def refuse_other_vaes(vae: comfy.sd.VAE) -> None:
    """Raise CheckpointError unless ComfyUI took the VAE for Wan2.1's."""
    network, cure = vae.first_stage_model, "connect a VAE loader with wan_2.1_vae.safetensors"
    if not isinstance(network, comfy.ldm.wan.vae.WanVAE):
        found = f"a {type(network).__name__} of {vae.latent_channels} latent channels" if network else "no VAE"
        raise CheckpointError(f"this VAE is not Wan2.1's: found {found}, expected {LATENT_CHANNELS} of a video; {cure}")
    channels = network.decoder.head[-1].out_channels
    if channels != 3:
        raise CheckpointError(f"this VAE decodes to {channels} channels, expected Wan2.1's 3; {cure}")


def relative_error(decoder: VideoDecoder, latents_BFCHW: Tensor, whole_BFCHW: Tensor) -> float:
    """How far a decoder's pixels are from those of the whole: 0 for none, about 0.25 for a wrong cut."""
    try:
        pixels_BFCHW = torch.cat([decoder.push(latents_BFCHW), decoder.flush()], dim=1)
    except (AttributeError, IndexError, TypeError):  # a network with other parts or another signature
        return math.inf
    if pixels_BFCHW.shape != whole_BFCHW.shape:
        return math.inf
    return float(torch.dist(pixels_BFCHW, whole_BFCHW) / whole_BFCHW.norm())


@torch.no_grad()
def decode_whole(vae: comfy.sd.VAE, latents_BFCHW: Tensor) -> Tensor:
    """Decode by the host's own one call."""
    load(vae, latents_BFCHW)
    with on_device(vae):
        return as_pixels(vae.first_stage_model.decode(to_vae_space(vae, latents_BFCHW)))


def load(vae: comfy.sd.VAE, latents_BFCHW: Tensor) -> None:
    """Have the host make room and load the network; cheap where it is loaded already."""
    batch, num_frames, channels, *cells = latents_BFCHW.shape
    estimate = vae.memory_used_decode((batch, channels, max(num_frames, VIDEO_FRAMES), *cells), vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=estimate, force_full_load=vae.disable_offload)


def on_device(vae: comfy.sd.VAE) -> AbstractContextManager:
    """Make the VAE's GPU the current one, on hosts that know several."""
    return getattr(comfy.model_management, "cuda_device_context", nullcontext)(vae.device)


def to_vae_space(vae: comfy.sd.VAE, latents_BFCHW: Tensor) -> Tensor:
    z_BCTHW = comfy.latent_formats.Wan21().process_out(latents_BFCHW.to(vae.device).transpose(1, 2))
    return z_BCTHW.to(vae.vae_dtype)


def as_pixels(pixels_BCTHW: Tensor) -> Tensor:
    """The network's output as every `VideoDecoder` gives it: [B F 3 H W], float32, -1..1."""
    return pixels_BCTHW.transpose(1, 2).float().clamp_(-1, 1)
