"""Streams over the VAE that ComfyUI loaded: they decode and encode a video piece by piece, with ComfyUI's arithmetic.

Pixels depend on the pieces, and ComfyUI's pieces depend on its release. Since early 2026 it decodes the first latent
alone and then pairs; before, each latent alone. It encodes the first pixel frame alone and then pairs, the last one
marked; before, groups of four. So a trial chooses the pieces: on a little noise, they must give what ComfyUI's single
call on the whole gives.
"""

import copy
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import comfy.taesd.taehv
import torch
from torch import Tensor, nn

from ...longlive.digest import hash_tensors
from ...longlive.errors import WeightsError
from ...longlive.model.convolution import use_fast_convolutions
from ...longlive.model.vae import LATENT_CHANNELS, WanVAE
from ...longlive.model.vae_streams import (
    ResumableDecoder,
    StreamingDecoder,
    StreamingEncoder,
    VideoDecoder,
    VideoEncoder,
    choose_warm_up_blocks,
    count_needed_layers,
    split_passes,
)
from ...longlive.units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from .model import use_device

log = logging.getLogger(__name__)

StreamT = TypeVar("StreamT", ResumableDecoder, VideoEncoder)
TRIAL_LATENTS = 1, 5, LATENT_CHANNELS, 4, 4  # the first latent, then two pairs
TRIAL_PIXELS = 1, 13, 3, 32, 32  # the first frame, four pairs for two latents, and two pairs for the last one
TOLERANCE = 0.02  # relative; bfloat16 stays below, wrong pieces far above
VIDEO_FRAMES = 5  # ComfyUI's memory estimate takes a shorter video for an image


def create_decoder(vae: comfy.sd.VAE, *, interruptible: bool = True) -> ResumableDecoder:
    """Create a decoder of model-space latents over a ComfyUI VAE. Raises WeightsError for any VAE but Wan2.1's.

    After `flush` it takes the next video, of any batch and size. If `interruptible`, Cancel ends it between two passes.
    """
    refuse_other_vaes(vae)
    latents_BFCHW = torch.randn(TRIAL_LATENTS, generator=torch.Generator().manual_seed(0))
    with use_vae(vae, vae.memory_used_decode, latents_BFCHW):
        whole_BFCHW = as_pixels(vae.first_stage_model.decode(to_vae_space(vae, latents_BFCHW)))
    hosts = [HostDecoder(vae, at_once, interruptible=interruptible) for at_once in (1, 2)]
    cure = "update LongLive, or decode with LongLive Session to Latent and VAE Decode"
    return choose_stream(hosts, lambda: StreamingDecoder(copy_vae(vae)), latents_BFCHW, whole_BFCHW, cure=cure)


def create_encoder(vae: comfy.sd.VAE, *, interruptible: bool = True) -> VideoEncoder:
    """Create an encoder into model-space latents over a ComfyUI VAE, otherwise like the decoder."""
    refuse_other_vaes(vae)
    pixels_BFCHW = torch.randn(TRIAL_PIXELS, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
    with use_vae(vae, vae.memory_used_encode, pixels_BFCHW):
        whole_BFCHW = as_latents(vae.first_stage_model.encode(to_network_axes(vae, pixels_BFCHW)))
    hosts = [HostEncoder(vae, in_pairs=in_pairs, interruptible=interruptible) for in_pairs in (False, True)]
    return choose_stream(
        hosts, lambda: StreamingEncoder(copy_vae(vae)), pixels_BFCHW, whole_BFCHW, cure="update LongLive"
    )


def choose_stream(
    hosts: Sequence[StreamT], ours: Callable[[], StreamT], trial_BFCHW: Tensor, whole_BFCHW: Tensor, *, cure: str
) -> StreamT:
    """Choose the stream that gives for a trial what ComfyUI gives for the whole: the best of `hosts`, else our own.

    Raises WeightsError if no stream does.
    """
    errors = [measure_error(stream, trial_BFCHW, whole_BFCHW) for stream in hosts]
    if min(errors) <= TOLERANCE:
        return hosts[errors.index(min(errors))]

    stream = ours()
    if measure_error(stream, trial_BFCHW, whole_BFCHW) > TOLERANCE:
        raise WeightsError(
            f"this ComfyUI's VAE does not work like Wan2.1's, in a way that LongLive does not know; {cure}"
        )
    log.warning(
        "LongLive does not know how this ComfyUI divides a video for the VAE, and uses its own VAE code instead"
    )
    return stream


def copy_vae(vae: comfy.sd.VAE) -> WanVAE:
    """Build our own VAE with the weights of ComfyUI's."""
    return WanVAE.of_weights(vae.get_sd(), device=vae.device, dtype=vae.vae_dtype)


class HostStream:
    """The encoder or decoder of ComfyUI's network on a video: the first frame passes alone, then `at_once` per pass.

    Frames wait until `together` of them can pass. The network keeps its state of the video in `past`, on the VAE's
    device, until `flush`.
    """

    out_channels: int
    _pass: Callable[..., Tensor]  # one piece through this half; `last` marks the end of the video

    def __init__(
        self,
        vae: comfy.sd.VAE,
        half: nn.Module,
        memory_used: Callable,
        at_once: int,
        together: int,
        *,
        interruptible: bool = True,
    ) -> None:
        self.vae, self.half, self.memory_used, self.at_once, self.together = vae, half, memory_used, at_once, together
        self.interruptible = interruptible
        self.nothing_BFCHW = torch.empty(1, 0, self.out_channels, 0, 0)
        self._reset()

    def flush(self) -> Tensor:
        try:
            return self.nothing_BFCHW if self.waiting_BFCHW is None else self._run(self.waiting_BFCHW, last=True)
        finally:
            self._reset()

    def _reset(self) -> None:
        self.has_begun = False
        self.waiting_BFCHW: Tensor | None = None
        self.past: list = [None] * sum(1 for _ in self.half.modules())  # more slots than any release uses

    @property
    def past_bytes(self) -> int:
        return sum(slot.nbytes for slot in self.past if isinstance(slot, Tensor))

    def _take(self, video_BFCHW: Tensor, *out_size: int) -> Tensor:
        if self.waiting_BFCHW is not None:
            video_BFCHW = torch.cat([self.waiting_BFCHW.to(video_BFCHW), video_BFCHW], dim=1)
        self.nothing_BFCHW = torch.empty(len(video_BFCHW), 0, self.out_channels, *out_size, device=self.vae.device)
        ready_BFCHW, self.waiting_BFCHW = self._divide(video_BFCHW)
        return self._run(ready_BFCHW)

    def _divide(self, video_BFCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Divide into the frames that can pass now and those that wait for more."""
        count = video_BFCHW.shape[1]
        num_waiting = (count - (not self.has_begun)) % self.together if count else 0
        ready_BFCHW, waiting_BFCHW = video_BFCHW.split([count - num_waiting, num_waiting], dim=1)
        return ready_BFCHW, waiting_BFCHW.clone()  # a view would keep all of the push alive

    def _run(self, video_BFCHW: Tensor, *, last: bool = False) -> Tensor:
        pieces = split_passes(video_BFCHW, has_begun=self.has_begun, at_once=self.at_once)
        if not pieces:
            return self.nothing_BFCHW
        results = []
        with use_vae(self.vae, self.memory_used, video_BFCHW, held=self.past_bytes):
            for piece in pieces:
                self._check_interrupt()
                results.append(self._pass(piece, last=last and piece is pieces[-1]))
        self.has_begun = True
        return torch.cat(results, dim=1)

    def _check_interrupt(self) -> None:
        if self.interruptible:
            comfy.model_management.throw_exception_if_processing_interrupted()


class HostDecoder(HostStream):
    """A `ResumableDecoder` over ComfyUI's network."""

    out_channels = 3

    def __init__(self, vae: comfy.sd.VAE, at_once: int, *, interruptible: bool = True) -> None:
        decoder, memory_used = vae.first_stage_model.decoder, vae.memory_used_decode
        super().__init__(vae, decoder, memory_used, at_once, together=at_once, interruptible=interruptible)
        self.identity = f"the host's, {at_once} at once, {identify_vae(vae)}"

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self._reset()
        if not blocks:
            return
        ready_BFCHW, waiting_BFCHW = self._divide(torch.cat([*choose_warm_up_blocks(blocks, self.together)], dim=1))
        distance = ready_BFCHW.shape[1]
        with use_vae(self.vae, self.memory_used, ready_BFCHW[:, : self.at_once]):
            for piece in split_passes(ready_BFCHW, has_begun=False, at_once=self.at_once):
                self._check_interrupt()
                distance -= piece.shape[1]
                # Every layer needs the first piece: a layer doubles the frames of all pieces but the first it sees.
                self._network(piece, count_needed_layers(distance) if self.has_begun else None)
                self.has_begun = True
        self.waiting_BFCHW = waiting_BFCHW

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        return self._take(latents_BFCHW, *(PIXELS_PER_CELL * n for n in latents_BFCHW.shape[-2:]))

    def _pass(self, latents_BFCHW: Tensor, *, last: bool) -> Tensor:
        pixels = self._network(latents_BFCHW)
        return as_pixels(torch.cat(pixels, dim=2) if isinstance(pixels, list) else pixels)

    def _network(self, latents_BFCHW: Tensor, num_layers: int | None = None) -> Tensor | list[Tensor]:
        z_BCTHW = self.vae.first_stage_model.conv2(to_vae_space(self.vae, latents_BFCHW))
        return shorten_decoder(self.half, num_layers)(z_BCTHW, feat_cache=self.past, feat_idx=[0])


def shorten_decoder(decoder: nn.Module, num_layers: int | None) -> nn.Module:
    """Make a decoder of the same layers that ends after `num_layers` of its `upsamples`; ComfyUI's is unchanged."""
    if num_layers is None:
        return decoder
    short = copy.copy(decoder)
    upsamples = decoder.get_submodule("upsamples")
    assert isinstance(upsamples, nn.Sequential)
    short._modules = {**decoder._modules, "upsamples": upsamples[:num_layers], "head": nn.Sequential()}
    return short


class HostEncoder(HostStream):
    """A `VideoEncoder` over ComfyUI's network: four pixel frames make a latent.

    A network that takes pairs of frames gives two latents at every fourth pair. It gives one alone only for a pair that
    is marked as the last, and then it cannot continue. So pairs wait until there are four: a latent may come 4 pixel
    frames late, or with `flush`.
    """

    out_channels = LATENT_CHANNELS

    def __init__(self, vae: comfy.sd.VAE, *, in_pairs: bool, interruptible: bool = True) -> None:
        at_once, together = (2, 2 * PIXEL_FRAMES_PER_FRAME) if in_pairs else (PIXEL_FRAMES_PER_FRAME,) * 2
        encoder, memory_used = vae.first_stage_model.encoder, vae.memory_used_encode
        super().__init__(vae, encoder, memory_used, at_once, together, interruptible=interruptible)
        self.in_pairs = in_pairs

    def push(self, pixels_BFCHW: Tensor) -> Tensor:
        """Take the next pixel frames [B F 3 H W], -1..1; return the latents now known, normalised and not sampled."""
        height, width = pixels_BFCHW.shape[-2:]
        if height % PIXELS_PER_CELL or width % PIXELS_PER_CELL:
            raise ValueError(f"pixels are {width} x {height}; width and height must be multiples of {PIXELS_PER_CELL}")
        return self._take(pixels_BFCHW, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)

    def flush(self) -> Tensor:
        """End the video: return the latent that is still due (our own encoder has none); up to 3 frames are dropped."""
        if (waiting_BFCHW := self.waiting_BFCHW) is not None:
            count = waiting_BFCHW.shape[1]
            self.waiting_BFCHW = waiting_BFCHW[:, : count - count % PIXEL_FRAMES_PER_FRAME]
        return super().flush()

    def _pass(self, pixels_BFCHW: Tensor, *, last: bool) -> Tensor:
        mark = {"final": last} if self.in_pairs else {}
        x_BCTHW = self.half(to_network_axes(self.vae, pixels_BFCHW), feat_cache=self.past, feat_idx=[0], **mark)
        if x_BCTHW is None:  # kept for the next pass
            return self.nothing_BFCHW
        return as_latents(self.vae.first_stage_model.conv1(x_BCTHW)[:, :LATENT_CHANNELS])  # the mean, not the variance


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


def measure_error(stream: VideoDecoder | VideoEncoder, trial_BFCHW: Tensor, whole_BFCHW: Tensor) -> float:
    """Measure how far the result of a stream is from the whole, relative to the whole: about 0.25 for wrong pieces."""
    try:
        made_BFCHW = torch.cat([stream.push(trial_BFCHW), stream.flush()], dim=1)
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError):  # other parts, another signature, other shapes
        return math.inf
    if made_BFCHW.shape != whole_BFCHW.shape:
        return math.inf
    return float(torch.dist(made_BFCHW.float(), whole_BFCHW) / whole_BFCHW.norm())


def identify_vae(vae: comfy.sd.VAE) -> str:
    """Describe all that the pixels of a VAE depend on, beside the latents and their pieces."""
    network = vae.first_stage_model
    if network not in _digests:
        halves = ("conv2.", "decoder.")
        _digests[network] = hash_tensors({k: w for k, w in vae.get_sd().items() if k.startswith(halves)})
    return f"{vae.vae_dtype} on {vae.device.type}, torch {torch.__version__}, {_digests[network]}"


_digests: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()  # cached: hashing takes a second


@contextmanager
def use_vae(vae: comfy.sd.VAE, memory_used: Callable, video_BFCHW: Tensor, *, held: int = 0) -> Iterator[None]:
    """Let ComfyUI free memory and load the network, if it is not loaded; then use its device and fast convolutions.

    Of the memory that the pass needs, `held` bytes are allocated already.
    """
    batch, num_frames, channels, *size = video_BFCHW.shape
    estimate = memory_used((batch, channels, max(num_frames, VIDEO_FRAMES), *size), vae.vae_dtype)
    needed = max(estimate - held, 0)
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
