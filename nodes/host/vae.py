"""Choosing how the VAE that ComfyUI loaded decodes and encodes a video piece by piece.

Our own network does it over ComfyUI's weights, if on a little noise it gives what ComfyUI's single call on the whole
gives. If it does not, ComfyUI's network does it, in the pieces that do.
"""

import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.ldm.wan.vae
import comfy.sd
import comfy.taesd.taehv
import torch
from torch import Tensor, nn

from ...longlive.errors import WeightsError
from ...longlive.model.vae import LATENT_CHANNELS, WanVAE
from ...longlive.model.vae_streams import (
    ResumableDecoder,
    StreamingDecoder,
    StreamingEncoder,
    VideoDecoder,
    VideoEncoder,
)
from .host_network import HostDecoder, HostEncoder
from .shared_vae import SharedVAE
from .vae_use import as_latents, as_pixels, estimate_bytes, to_network_axes, to_vae_space, use_vae

log = logging.getLogger(__name__)

StreamT = TypeVar("StreamT", ResumableDecoder, VideoEncoder)
PAIRS = 2  # latents per pass where nobody chooses: as many as ComfyUI takes
TRIAL_LATENTS = 1, 5, LATENT_CHANNELS, 4, 4  # the first latent, then two pairs
TRIAL_PIXELS = 1, 13, 3, 32, 32  # the first frame, four pairs for two latents, and two pairs for the last one
TOLERANCE = 0.05  # relative; bfloat16 (0.015) and TF32 stay below, wrong pieces (0.25) above
EXACT_TOLERANCE, EXACT_USE = 1e-5, (torch.float32, torch.device("cpu"))  # of our network where nothing rounds more


def create_decoder(vae: comfy.sd.VAE, *, at_once: int = PAIRS, interruptible: bool = True) -> ResumableDecoder:
    """Create a decoder of model-space latents over a ComfyUI VAE. Raises WeightsError for any VAE but Wan2.1's.

    After `flush` it takes the next video, of any batch and size. If `interruptible`, Cancel ends it between two passes.
    Our own network takes `at_once` latents per pass; ComfyUI's as many as ComfyUI gives it.
    """
    refuse_other_vaes(vae)

    def create_trial() -> tuple[Tensor, Tensor]:
        latents_BFCHW = torch.randn(TRIAL_LATENTS, generator=torch.Generator().manual_seed(0))
        with use_vae(vae, estimate_bytes(vae, vae.memory_used_decode, latents_BFCHW)):
            return latents_BFCHW, as_pixels(vae.first_stage_model.decode(to_vae_space(vae, latents_BFCHW)))

    return choose_stream(
        vae,
        "decoder",
        lambda: StreamingDecoder(SharedVAE(vae, interruptible=interruptible), at_once=at_once),
        lambda: [HostDecoder(vae, n, interruptible=interruptible) for n in (1, 2)],
        lambda: StreamingDecoder(copy_vae(vae)),
        create_trial,
        cure="update LongLive, or decode with LongLive Session to Latent and VAE Decode",
    )


def create_encoder(vae: comfy.sd.VAE, *, at_once: int = PAIRS, interruptible: bool = True) -> VideoEncoder:
    """Create an encoder into model-space latents over a ComfyUI VAE, otherwise like the decoder."""
    refuse_other_vaes(vae)

    def create_trial() -> tuple[Tensor, Tensor]:
        pixels_BFCHW = torch.randn(TRIAL_PIXELS, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
        with use_vae(vae, estimate_bytes(vae, vae.memory_used_encode, pixels_BFCHW)):
            return pixels_BFCHW, as_latents(vae.first_stage_model.encode(to_network_axes(vae, pixels_BFCHW)))

    return choose_stream(
        vae,
        "encoder",
        lambda: StreamingEncoder(SharedVAE(vae, interruptible=interruptible), at_once=at_once),
        lambda: [HostEncoder(vae, in_pairs=in_pairs, interruptible=interruptible) for in_pairs in (False, True)],
        lambda: StreamingEncoder(copy_vae(vae)),
        create_trial,
        cure="update LongLive",
    )


def choose_stream(
    vae: comfy.sd.VAE,
    half: str,
    create_shared: Callable[[], StreamT],
    create_hosts: Callable[[], Sequence[StreamT]],
    create_copy: Callable[[], StreamT],
    create_trial: Callable[[], tuple[Tensor, Tensor]],
    *,
    cure: str,
) -> StreamT:
    """Choose the stream that gives for a trial what ComfyUI gives for the whole.

    The first is our own over ComfyUI's weights, checked once per network, half, dtype and device; then the best over
    ComfyUI's network; then our own with a copy of the weights. Raises WeightsError if no stream does.
    """
    errors_by_use = _shared_errors.setdefault(vae.first_stage_model, {})
    use, trial = (half, vae.vae_dtype, vae.device), None
    if use not in errors_by_use:
        trial = create_trial()
        errors_by_use[use] = measure_error(create_shared, *trial)
    error, tolerance = errors_by_use[use], EXACT_TOLERANCE if use[1:] == EXACT_USE else TOLERANCE
    if error <= tolerance:
        return create_shared()
    found = (
        f"differs from it by {error:.1g}, expected at most {tolerance:g}" if error < math.inf else "cannot replace it"
    )
    log.warning("the VAE's %s is ComfyUI's own, which is slower than LongLive's: LongLive's %s", half, found)
    trial = trial or create_trial()
    hosts = create_hosts()
    errors = [measure_error(lambda host=host: host, *trial) for host in hosts]
    if min(errors) <= TOLERANCE:
        return hosts[errors.index(min(errors))]
    if measure_error(create_copy, *trial) > TOLERANCE:
        raise WeightsError(
            f"this ComfyUI's VAE does not work like Wan2.1's, in a way that LongLive does not know; {cure}"
        )
    log.warning(
        "LongLive does not know how this ComfyUI divides a video for the VAE, and uses its own VAE code instead"
    )
    return create_copy()


_shared_errors: weakref.WeakKeyDictionary[nn.Module, dict[tuple, float]] = weakref.WeakKeyDictionary()


def copy_vae(vae: comfy.sd.VAE) -> WanVAE:
    """Build our own VAE with the weights of ComfyUI's."""
    return WanVAE.of_weights(vae.get_sd(), device=vae.device, dtype=vae.vae_dtype)


def refuse_other_vaes(vae: comfy.sd.VAE) -> None:
    """Raise WeightsError unless ComfyUI loaded the VAE as Wan2.1's."""
    network, cure = vae.first_stage_model, "connect a VAE loader with wan_2.1_vae.safetensors"
    if isinstance(network, comfy.taesd.taehv.TAEHV):
        raise WeightsError(f"this is a tiny VAE, which only LongLive Decode and previews use; {cure}")
    if not isinstance(network, comfy.ldm.wan.vae.WanVAE):
        found = f"a {type(network).__name__} of {vae.latent_channels} latent channels" if network else "no VAE"
        raise WeightsError(f"this VAE is not Wan2.1's: found {found}, expected {LATENT_CHANNELS} of a video; {cure}")
    if (channels := network.decoder.head[-1].out_channels) != 3:
        raise WeightsError(f"this VAE decodes to {channels} channels, expected Wan2.1's 3; {cure}")


def measure_error(create: Callable[[], VideoDecoder | VideoEncoder], trial_BFCHW: Tensor, whole_BFCHW: Tensor) -> float:
    """Measure how far the result of a stream is from the whole, relative to the whole: about 0.25 for wrong pieces."""
    try:
        stream = create()
        made_BFCHW = torch.cat([stream.push(trial_BFCHW), stream.flush()], dim=1)
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError):  # other parts, another signature, other shapes
        return math.inf
    if made_BFCHW.shape != whole_BFCHW.shape:
        return math.inf
    return float(torch.dist(made_BFCHW.float(), whole_BFCHW) / whole_BFCHW.norm())
