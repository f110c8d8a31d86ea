"""Streaming over the VAE that ComfyUI loaded: a video passes it piece by piece, in the host's own arithmetic.

Hosts since early 2026 decode the first latent alone and then pairs, older ones each alone; any other cut gives other
pixels. They encode the first pixel frame alone and then pairs, the last one marked, where older ones take fours. So the
cut is found by trying: on a little noise it must give what the host's own one call on the whole gives.
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
import torch
from torch import Tensor, nn

from ..longlive.config import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from ..longlive.digest import digest_of_tensors
from ..longlive.errors import CheckpointError, VideoError
from ..longlive.model.convolution import fast_convolutions
from ..longlive.model.vae import (
    LATENT_CHANNELS,
    ResumableDecoder,
    StreamingDecoder,
    StreamingEncoder,
    TiledDecoder,
    VideoDecoder,
    VideoEncoder,
    WanVAE,
    cut,
    layers_needed,
    recent_blocks,
)
from ..longlive.tune.stream import Codec
from .host import on_device

log = logging.getLogger(__name__)

Stream = TypeVar("Stream", ResumableDecoder, VideoEncoder)
TRIAL_LATENTS = 1, 5, LATENT_CHANNELS, 4, 4  # the first latent, then two pairs
TRIAL_PIXELS = 1, 13, 3, 32, 32  # the first frame, four pairs that make two latents, two that owe one at the end
TOLERANCE = 0.02  # relative; bfloat16 stays below, a wrong cut far above
VIDEO_FRAMES = 5  # the host's estimate of memory takes fewer for an image


def streaming_decoder(vae: comfy.sd.VAE, *, interruptible: bool = True) -> ResumableDecoder:
    """A decoder of model-space latents over a ComfyUI VAE. Raises CheckpointError for any VAE but Wan2.1's.

    After `flush` it takes the next video, of any batch and size. Interruptible means between two passes.
    """
    refuse_other_vaes(vae)
    latents_BFCHW = torch.randn(TRIAL_LATENTS, generator=torch.Generator().manual_seed(0))
    with ready(vae, vae.memory_used_decode, latents_BFCHW):
        whole_BFCHW = as_pixels(vae.first_stage_model.decode(to_vae_space(vae, latents_BFCHW)))
    hosts = [HostDecoder(vae, at_once, interruptible=interruptible) for at_once in (1, 2)]
    cure = "update LongLive, or decode with LongLive Session to Latent and VAE Decode"
    return faithful(hosts, lambda: StreamingDecoder(our_own(vae)), latents_BFCHW, whole_BFCHW, cure=cure)


def streaming_encoder(vae: comfy.sd.VAE, *, interruptible: bool = True) -> VideoEncoder:
    """An encoder into model-space latents over a ComfyUI VAE, otherwise like the decoder."""
    refuse_other_vaes(vae)
    pixels_BFCHW = torch.randn(TRIAL_PIXELS, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
    with ready(vae, vae.memory_used_encode, pixels_BFCHW):
        whole_BFCHW = as_latents(vae.first_stage_model.encode(to_network(vae, pixels_BFCHW)))
    hosts = [HostEncoder(vae, in_pairs=in_pairs, interruptible=interruptible) for in_pairs in (False, True)]
    return faithful(hosts, lambda: StreamingEncoder(our_own(vae)), pixels_BFCHW, whole_BFCHW, cure="update LongLive")


def faithful(
    hosts: Sequence[Stream], ours: Callable[[], Stream], trial_BFCHW: Tensor, whole_BFCHW: Tensor, *, cure: str
) -> Stream:
    """The stream that makes of a trial what the host makes of it as a whole: the best of `hosts`, or else our own."""
    errors = [relative_error(stream, trial_BFCHW, whole_BFCHW) for stream in hosts]
    if min(errors) <= TOLERANCE:
        return hosts[errors.index(min(errors))]

    stream = ours()
    if relative_error(stream, trial_BFCHW, whole_BFCHW) > TOLERANCE:
        raise CheckpointError(f"this ComfyUI's VAE works in a way LongLive does not know, and not as Wan2.1's; {cure}")
    log.warning("this ComfyUI's VAE takes video in passes LongLive does not know: LongLive uses its own code instead")
    return stream


class SavingDecoder:
    """The host's way of decoding while memory lasts. Out of it, first the same pixels in smaller passes, then tiles.

    What was decoded stays good: the next way begins where the one before it failed.
    """

    def __init__(self, vae: comfy.sd.VAE) -> None:
        decoder = streaming_decoder(vae)
        self.vae, self._identity = vae, decoder.identity
        self.decoder: ResumableDecoder | None = decoder  # None once it found no memory
        self._seen: list[Tensor] = []
        self._ways = iter((self._frame_by_frame, self._in_tiles))

    @property
    def identity(self) -> str:
        """That of the first way, also in smaller passes: they round alike. Tiles are others."""
        return self.decoder.identity if isinstance(self.decoder, TiledDecoder) else self._identity

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        def caught_up(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(blocks)
            return torch.empty(0)

        self._try(caught_up, caught_up)
        self._seen = list(blocks)

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        known, owed = self._known()

        def again(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(known)
            return decoder.push(torch.cat([*owed, latents_BFCHW], dim=1))

        pixels_BFCHW = self._try(lambda decoder: decoder.push(latents_BFCHW), again)
        self._seen.append(latents_BFCHW)
        return pixels_BFCHW

    def flush(self) -> Tensor:
        known, owed = self._known()

        def again(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(known)
            return torch.cat([*map(decoder.push, owed), decoder.flush()], dim=1)

        self._seen = []
        return self._try(lambda decoder: decoder.flush(), again)

    def _known(self) -> tuple[list[Tensor], list[Tensor]]:
        """The latents whose pixels were given, and those that wait for others."""
        waiting = self.decoder.waiting_BFCHW if isinstance(self.decoder, HostDecoder) else None
        if waiting is None or not waiting.shape[1]:
            return list(self._seen), []
        *known, last = self._seen
        return [*known, last[:, : -waiting.shape[1]]], [waiting]

    def _try(self, action: Callable[[ResumableDecoder], Tensor], again: Callable[[ResumableDecoder], Tensor]) -> Tensor:
        while True:
            try:
                if self.decoder is None:
                    self.decoder, action = self._next_way(), again
                return action(self.decoder)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._make_room()  # not where the error is held, which holds what the failed pass did

    def _make_room(self) -> None:
        self.decoder = None
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def _next_way(self) -> ResumableDecoder:
        for way in self._ways:
            return way()
        raise VideoError(
            "there is not enough memory to decode this video, not even in tiles; the video itself is kept: connect "
            "LongLive Session to Latent and VAE Decode (Tiled) with small tiles, or free memory and queue again"
        )

    def _frame_by_frame(self) -> ResumableDecoder:
        log.warning("out of memory while decoding: LongLive goes on in smaller passes, which make the same pixels")
        return StreamingDecoder(our_own(self.vae), at_once=1, frames_at_once=1)

    def _in_tiles(self) -> ResumableDecoder:
        log.warning("out of memory while decoding: LongLive goes on in tiles, whose edges may show faintly")
        return TiledDecoder(our_own(self.vae))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host takes an error for want of memory."""
    management = comfy.model_management
    if isinstance(error, management.InterruptProcessingException):
        return False
    if management.OOM_EXCEPTION is Exception:  # a device whose error has no name
        return "memory" in str(error).lower()
    known = getattr(management, "is_oom", None)
    return known(error) if known else isinstance(error, management.OOM_EXCEPTION)


def tuning_codec(vae: comfy.sd.VAE) -> Codec:
    """Both for a tuning, which an interrupt must meet between two steps, never within one."""
    decoder, encoder = streaming_decoder(vae, interruptible=False), streaming_encoder(vae, interruptible=False)
    return Codec(lambda: GraphSafeDecoder(decoder), lambda: GraphSafeEncoder(encoder))


class GraphSafe:
    """A stream in inference mode, as everything of the host's; what it gives may stand beside tensors with a graph."""

    def __init__(self, stream: VideoDecoder | VideoEncoder) -> None:
        self.stream = stream

    def flush(self) -> Tensor:
        with torch.inference_mode():
            made_BFCHW = self.stream.flush()
        return made_BFCHW.clone()

    def _pushed(self, video_BFCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            made_BFCHW = self.stream.push(video_BFCHW)
        return made_BFCHW.clone()


class GraphSafeDecoder(GraphSafe):
    def push(self, latents_BFCHW: Tensor) -> Tensor:
        return self._pushed(latents_BFCHW)


class GraphSafeEncoder(GraphSafe):
    def push(self, pixels_BFCHW: Tensor) -> Tensor:
        return self._pushed(pixels_BFCHW)


def our_own(vae: comfy.sd.VAE) -> WanVAE:
    return WanVAE.of_weights(vae.get_sd(), device=vae.device, dtype=vae.vae_dtype)


class HostStream:
    """Half of the host's network on a video: the first frame alone, then `at_once` to a pass; all wait for `together`.

    The network's memory of the video is a list that belongs to this object, on the VAE's device, until `flush`.
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
        self._forget()

    def flush(self) -> Tensor:
        try:
            return self.nothing_BFCHW if self.waiting_BFCHW is None else self._run(self.waiting_BFCHW, last=True)
        finally:
            self._forget()

    def _forget(self) -> None:
        self.begun = False
        self.waiting_BFCHW: Tensor | None = None
        self.past: list = [None] * sum(1 for _ in self.half.modules())  # more slots than any host counts

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
        """What can pass now, and what waits for more."""
        count = video_BFCHW.shape[1]
        num_waiting = (count - (not self.begun)) % self.together if count else 0
        ready_BFCHW, waiting_BFCHW = video_BFCHW.split([count - num_waiting, num_waiting], dim=1)
        return ready_BFCHW, waiting_BFCHW.clone()  # a view would keep all of the push alive

    def _run(self, video_BFCHW: Tensor, *, last: bool = False) -> Tensor:
        pieces = cut(video_BFCHW, begun=self.begun, at_once=self.at_once)
        if not pieces:
            return self.nothing_BFCHW
        made = []
        with ready(self.vae, self.memory_used, video_BFCHW, held=self.past_bytes):
            for piece in pieces:
                self._obey()
                made.append(self._pass(piece, last=last and piece is pieces[-1]))
        self.begun = True
        return torch.cat(made, dim=1)

    def _obey(self) -> None:
        if self.interruptible:
            comfy.model_management.throw_exception_if_processing_interrupted()


class HostDecoder(HostStream):
    """A `ResumableDecoder` over the host's network."""

    out_channels = 3

    def __init__(self, vae: comfy.sd.VAE, at_once: int, *, interruptible: bool = True) -> None:
        decoder, memory_used = vae.first_stage_model.decoder, vae.memory_used_decode
        super().__init__(vae, decoder, memory_used, at_once, together=at_once, interruptible=interruptible)
        self.identity = f"the host's, {at_once} at once, {identity(vae)}"

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self._forget()
        if not blocks:
            return
        ready_BFCHW, waiting_BFCHW = self._divide(torch.cat([*recent_blocks(blocks, self.together)], dim=1))
        distance = ready_BFCHW.shape[1]
        with ready(self.vae, self.memory_used, ready_BFCHW[:, : self.at_once]):
            for piece in cut(ready_BFCHW, begun=False, at_once=self.at_once):
                self._obey()
                distance -= piece.shape[1]
                self._network(piece, layers_needed(distance) if self.begun else None)
                self.begun = True  # each layer doubles frames from the second piece on that it has seen
        self.waiting_BFCHW = waiting_BFCHW

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        return self._take(latents_BFCHW, *(PIXELS_PER_CELL * n for n in latents_BFCHW.shape[-2:]))

    def _pass(self, latents_BFCHW: Tensor, *, last: bool) -> Tensor:
        pixels = self._network(latents_BFCHW)
        return as_pixels(torch.cat(pixels, dim=2) if isinstance(pixels, list) else pixels)

    def _network(self, latents_BFCHW: Tensor, num_layers: int | None = None) -> Tensor | list[Tensor]:
        z_BCTHW = self.vae.first_stage_model.conv2(to_vae_space(self.vae, latents_BFCHW))
        return shortened(self.half, num_layers)(z_BCTHW, feat_cache=self.past, feat_idx=[0])


def shortened(decoder: nn.Module, num_layers: int | None) -> nn.Module:
    """A decoder over the same layers that ends behind so many of its `upsamples`; the host's stays as it is."""
    if num_layers is None:
        return decoder
    short = copy.copy(decoder)
    upsamples = decoder.get_submodule("upsamples")
    assert isinstance(upsamples, nn.Sequential)
    short._modules = {**decoder._modules, "upsamples": upsamples[:num_layers], "head": nn.Sequential()}
    return short


class HostEncoder(HostStream):
    """A `VideoEncoder` over the host's network; in pairs, a latent may come 4 pixel frames late, or with `flush`.

    Fours give a latent each. Of pairs, the network keeps what is half done and gives two latents at every fourth; one
    alone comes out by marking its last pair, after which the network cannot go on. So pairs wait until four are there.
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
        """End the video: return the latent still due, where our own encoder owes none; up to 3 frames are dropped."""
        if (waiting_BFCHW := self.waiting_BFCHW) is not None:
            count = waiting_BFCHW.shape[1]
            self.waiting_BFCHW = waiting_BFCHW[:, : count - count % PIXEL_FRAMES_PER_FRAME]
        return super().flush()

    def _pass(self, pixels_BFCHW: Tensor, *, last: bool) -> Tensor:
        mark = {"final": last} if self.in_pairs else {}
        x_BCTHW = self.half(to_network(self.vae, pixels_BFCHW), feat_cache=self.past, feat_idx=[0], **mark)
        if x_BCTHW is None:  # kept for the next pass
            return self.nothing_BFCHW
        return as_latents(self.vae.first_stage_model.conv1(x_BCTHW)[:, :LATENT_CHANNELS])  # the mean, not the variance


def refuse_other_vaes(vae: comfy.sd.VAE) -> None:
    """Raise CheckpointError unless ComfyUI took the VAE for Wan2.1's."""
    network, cure = vae.first_stage_model, "connect a VAE loader with wan_2.1_vae.safetensors"
    if not isinstance(network, comfy.ldm.wan.vae.WanVAE):
        found = f"a {type(network).__name__} of {vae.latent_channels} latent channels" if network else "no VAE"
        raise CheckpointError(f"this VAE is not Wan2.1's: found {found}, expected {LATENT_CHANNELS} of a video; {cure}")
    if (channels := network.decoder.head[-1].out_channels) != 3:
        raise CheckpointError(f"this VAE decodes to {channels} channels, expected Wan2.1's 3; {cure}")


def relative_error(stream: VideoDecoder | VideoEncoder, trial_BFCHW: Tensor, whole_BFCHW: Tensor) -> float:
    """How far what a stream makes is from the whole: 0 for not at all, about 0.25 for a wrong cut."""
    try:
        made_BFCHW = torch.cat([stream.push(trial_BFCHW), stream.flush()], dim=1)
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError):  # other parts, another signature, other shapes
        return math.inf
    if made_BFCHW.shape != whole_BFCHW.shape:
        return math.inf
    return float(torch.dist(made_BFCHW.float(), whole_BFCHW) / whole_BFCHW.norm())


def identity(vae: comfy.sd.VAE) -> str:
    """What else the pixels of a VAE depend on, beside the latents and how they are cut."""
    network = vae.first_stage_model
    if network not in digests:
        halves = ("conv2.", "decoder.")
        digests[network] = digest_of_tensors({k: w for k, w in vae.get_sd().items() if k.startswith(halves)})
    return f"{vae.vae_dtype} on {vae.device.type}, torch {torch.__version__}, {digests[network]}"


digests: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()  # hashing takes a second: once


@contextmanager
def ready(vae: comfy.sd.VAE, memory_used: Callable, video_BFCHW: Tensor, *, held: int = 0) -> Iterator[None]:
    """Have the host make room, load the network (cheap where it is loaded) and make its device compute well.

    `held` bytes of what the pass takes are taken already.
    """
    batch, num_frames, channels, *size = video_BFCHW.shape
    estimate = memory_used((batch, channels, max(num_frames, VIDEO_FRAMES), *size), vae.vae_dtype)
    needed = max(estimate - held, 0)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    with torch.no_grad(), on_device(vae.device), fast_convolutions(vae.device):
        yield


def to_network(vae: comfy.sd.VAE, video_BFCHW: Tensor) -> Tensor:
    return video_BFCHW.to(vae.device, vae.vae_dtype).transpose(1, 2)


def to_vae_space(vae: comfy.sd.VAE, latents_BFCHW: Tensor) -> Tensor:
    return comfy.latent_formats.Wan21().process_out(latents_BFCHW.to(vae.device).transpose(1, 2)).to(vae.vae_dtype)


def as_pixels(pixels_BCTHW: Tensor) -> Tensor:
    """The network's output as every `VideoDecoder` gives it: [B F 3 H W], float32, -1..1."""
    return pixels_BCTHW.transpose(1, 2).float().clamp_(-1, 1)


def as_latents(z_BCTHW: Tensor) -> Tensor:
    """The VAE's latents as a `VideoEncoder` gives them: [B F C H W], float32, in the space of the model."""
    return comfy.latent_formats.Wan21().process_in(z_BCTHW.float()).transpose(1, 2)
