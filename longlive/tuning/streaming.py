"""Streaming: videos that grow chunk by chunk with one KV cache, and a clip to score per chunk (LongLive Alg. 1).

A clip is the new frames after a few earlier ones; only the new ones count in a loss. The first frame of any video
encodes a single picture, so that of a clip is decoded and encoded again (VAE re-anchoring, reference v1.0). Keys and
values stay as the weights of their step made them.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.placement import Placement
from ..model.vae import WanVAE
from ..model.vae_streams import StreamingDecoder, StreamingEncoder, VideoDecoder, VideoEncoder
from ..rollout.rollout import check_positions
from ..session.boundary import Boundary
from .config import StreamConfig
from .dmd import ScoredClip
from .graph_cache import GraphCache
from .optimizer_state import Tensors, join_states, select_state
from .student import Draws, Student

DECODED_FRAMES = 15  # latent frames per pass of the decoder
NO_SWITCH = -1  # in a checkpoint


@dataclass(frozen=True, slots=True)
class VideoBatch:
    """A batch of videos in progress, as a value. All have the same length and switch at the same frame."""

    pairs: tuple[int, ...]  # numbers of the prompt pairs
    switch: int | None  # frame
    cache: GraphCache
    length: int = 0  # frames
    previous: Tensor | None = None  # the latest frames [B, F, C, H, W], a clip

    @property
    def is_switched(self) -> bool:
        """Whether the next frame is under the second prompt."""
        return self.switch is not None and self.length >= self.switch

    def to_tensors(self) -> Tensors:
        """Return the videos as named tensors for a checkpoint. They must have at least one chunk."""
        assert self.previous is not None
        switch = NO_SWITCH if self.switch is None else self.switch
        facts = torch.tensor([self.length, switch, *self.pairs])
        return {"facts": facts, "previous": self.previous, **join_states({"memory": self.cache.to_tensors()})}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], num_layers: int) -> "VideoBatch":
        """Undo `to_tensors`."""
        length, switch, *pairs = tensors["facts"].tolist()
        cache = GraphCache.of_tensors(select_state(tensors, "memory"), num_layers)
        return cls(tuple(pairs), None if switch == NO_SWITCH else switch, cache, length, tensors["previous"])


@dataclass(frozen=True, slots=True)
class Codec:
    """A VAE, ours or the host's: makes a decoder and an encoder for one batch of videos."""

    decoder: Callable[[], VideoDecoder]
    encoder: Callable[[], VideoEncoder]

    @classmethod
    def of_vae(cls, vae: WanVAE) -> "Codec":
        return cls(lambda: StreamingDecoder(vae, at_once=DECODED_FRAMES), lambda: StreamingEncoder(vae))

    def encode_anchor(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode latents and encode their last picture as the first frame [B, 1, C, H, W] of a video."""
        decoder, encoder = self.decoder(), self.encoder()
        pixels = torch.cat([decoder.push(latents_BFCHW), decoder.flush()], dim=1)
        return torch.cat([encoder.push(pixels[:, -1:]), encoder.flush()], dim=1)


class Stream:
    """Extends batches of videos chunk by chunk.

    Raises ConfigError for clips that do not fit the blocks or the window, and PositionError for videos that are too
    long for absolute positions.
    """

    def __init__(self, student: Student, codec: Codec, config: StreamConfig) -> None:
        self.student, self.codec, self.config = student, codec, config
        block = student.config.block
        if config.clip % block or config.overlap % block:
            raise ConfigError(
                f"clip is {config.clip} and overlap is {config.overlap}; they must be multiples of the block, {block}"
            )
        check_positions(student.config, config.length)
        if student.config.window > config.clip:
            raise ConfigError(
                f"the window of {student.config.window} frames is longer than a clip of {config.clip}, and a recache "
                f"has only the clip; use a window of at most {config.clip}"
            )

    def begin(self, pairs: tuple[int, ...], switch: int | None) -> VideoBatch:
        """Begin videos: no frames yet, an empty KV cache."""
        return VideoBatch(pairs, switch, GraphCache.empty(self.student.wan.geometry.num_layers))

    def is_over(self, videos: VideoBatch) -> bool:
        """Whether no further chunk fits."""
        return videos.length + self._count_new_frames(videos) > self.config.length

    def _count_new_frames(self, videos: VideoBatch) -> int:
        return self.config.clip - (self.config.overlap if videos.length else 0)

    def make_chunk(
        self, videos: VideoBatch, embedding_BLD: Tensor, draws: Draws, wrapped_student: nn.Module | None = None
    ) -> tuple[ScoredClip, VideoBatch]:
        """Make the next chunk, under the prompt that `videos.is_switched` selects; return its clip and the new videos.

        `wrapped_student` is the student in a wrapper that has to see the call, for example one for several GPUs.
        """
        cache, start, previous = videos.cache, videos.length, videos.previous
        if start and start == videos.switch and previous is not None:
            cache = self._recache(cache, start, previous, embedding_BLD)
        blocks = self._count_new_frames(videos) // self.student.config.block
        new, cache = (wrapped_student or self.student)(cache, start, blocks, embedding_BLD, draws)
        latents, is_new = self._assemble_clip(previous, new)
        recent = new.detach() if previous is None else torch.cat([previous, new.detach()], dim=1)
        longer = replace(
            videos, cache=cache, length=start + new.shape[1], previous=recent[:, recent.shape[1] - self.config.clip :]
        )
        return ScoredClip(latents, is_new, embedding_BLD), longer

    def _assemble_clip(self, previous: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of a clip and which of its frames are new."""
        is_new = torch.ones(self.config.clip, dtype=torch.bool, device=new.device)
        if previous is None:
            return new, is_new
        is_new[: self.config.overlap] = False
        before = previous.shape[1] - self.config.overlap + 1  # frames up to the one that begins the clip, included
        with torch.no_grad():
            first = self.codec.encode_anchor(previous[:, max(0, before - self.config.anchored_on) : before])
        return torch.cat([first.to(new), previous[:, before:], new], dim=1), is_new

    def _recache(self, cache: GraphCache, start: int, previous: Tensor, embedding_BLD: Tensor) -> GraphCache:
        window = self.student.window
        if self.config.reference_behaviour:
            place = self._place_reference_recache(start, previous.shape[1])
            cache = cache.reset_to_zero_sink(window.sink)
        else:
            place = window.place_recache(start, renew=self.config.boundary is Boundary.RENEW)
        return self.student.recache(cache, place, previous[:, previous.shape[1] - place.frames :], embedding_BLD)

    def _place_reference_recache(self, start: int, frames: int) -> Placement:
        """Place a recache of a whole clip as the reference's trainer does: the sink only if the clip reaches it."""
        window = self.student.window
        slots: list[int | None] = [None] * (frames - window.recent)
        slots += [window.find_slot(frame) for frame in range(start - window.recent, start)]
        if start == frames:
            slots[: window.sink] = range(window.sink)
        return window.place_frames(start - frames, frames, slots)
