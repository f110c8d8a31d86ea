"""Streams over the network of the VAE that ComfyUI loaded: they decode and encode a video with ComfyUI's arithmetic.

Pixels depend on the pieces, and ComfyUI's pieces depend on its release. Since early 2026 it decodes the first latent
alone and then pairs; before, each latent alone. It encodes the first pixel frame alone and then pairs, the last one
marked; before, groups of four.
"""

import copy
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn

from ...longlive.model.vae import LATENT_CHANNELS
from ...longlive.model.vae_streams import choose_warm_up_blocks, count_needed_layers, split_passes
from ...longlive.units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from .vae_use import as_latents, as_pixels, estimate_bytes, identify_vae, to_network_axes, to_vae_space, use_vae


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
        with use_vae(self.vae, self._estimate_bytes(video_BFCHW) - self.past_bytes):
            for piece in pieces:
                self._check_interrupt()
                results.append(self._pass(piece, last=last and piece is pieces[-1]))
        self.has_begun = True
        return torch.cat(results, dim=1)

    def _estimate_bytes(self, video_BFCHW: Tensor) -> float:
        return estimate_bytes(self.vae, self.memory_used, video_BFCHW)

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
        with use_vae(self.vae, self._estimate_bytes(ready_BFCHW[:, : self.at_once])):
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
