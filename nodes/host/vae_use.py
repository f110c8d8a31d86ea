"""What all streams over a VAE of ComfyUI's share: how it is loaded, its spaces and axes, its identity."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn

from ...longlive.digest import hash_tensors
from ...longlive.model.convolution import use_fast_convolutions
from .model import use_device

VIDEO_FRAMES = 5  # ComfyUI's memory estimate takes a shorter video for an image


def identify_vae(vae: comfy.sd.VAE) -> str:
    """Describe all that the pixels of a VAE depend on, beside the latents and their pieces."""
    network = vae.first_stage_model
    if network not in _digests:
        halves = ("conv2.", "decoder.")
        _digests[network] = hash_tensors({k: w for k, w in vae.get_sd().items() if k.startswith(halves)})
    return f"{vae.vae_dtype} on {vae.device.type}, torch {torch.__version__}, {_digests[network]}"


_digests: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()  # cached: hashing takes a second


def estimate_bytes(vae: comfy.sd.VAE, memory_used: Callable, video_BFCHW: Tensor) -> float:
    """Estimate as ComfyUI does what its network needs for a video."""
    batch, num_frames, channels, *size = video_BFCHW.shape
    return memory_used((batch, channels, max(num_frames, VIDEO_FRAMES), *size), vae.vae_dtype)


@contextmanager
def use_vae(vae: comfy.sd.VAE, needed: float) -> Iterator[None]:
    """Let ComfyUI free `needed` bytes and load the network, if it is not; then use its device and fast convolutions."""
    needed = max(needed, 0)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    with torch.no_grad(), use_device(vae.device), use_fast_convolutions(vae.device):
        yield


def to_network_axes(vae: comfy.sd.VAE, video_BFCHW: Tensor) -> Tensor:
    return video_BFCHW.to(vae.device, vae.vae_dtype).transpose(1, 2)


def to_vae_space(vae: comfy.sd.VAE, latents_BFCHW: Tensor) -> Tensor:
    return comfy.latent_formats.Wan21().process_out(latents_BFCHW.to(vae.device).transpose(1, 2)).to(vae.vae_dtype)


def as_pixels(pixels_BCTHW: Tensor) -> Tensor:
    """Convert the network's output to what a `VideoDecoder` gives: [B F 3 H W], float32, -1..1."""
    return pixels_BCTHW.transpose(1, 2).float().clamp_(-1, 1)


def as_latents(z_BCTHW: Tensor) -> Tensor:
    """Convert the VAE's latents to what a `VideoEncoder` gives: [B F C H W], float32, in the space of the model."""
    return comfy.latent_formats.Wan21().process_in(z_BCTHW.float()).transpose(1, 2)
