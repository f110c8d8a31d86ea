"""Streaming: videos that grow chunk by chunk over one memory, each chunk a clip to be judged (LongLive §3.2, Alg. 1).

A clip is the new frames after a few frames that the videos had before. Its first frame is made anew from the picture
there, as the first frame of any video is made from one picture (VAE re-anchoring, reference v1.0); only new frames
count. A memory is computed by the weights of its time and is not computed again.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.vae import StreamingDecoder, StreamingEncoder, VideoDecoder, VideoEncoder, WanVAE
from ..rollout import check_positions
from ..timeline import Boundary
from ..window import Placement
from .config import StreamConfig
from .dmd import Judged
from .memory import Memory
from .student import Draws, Student

AT_ONCE = 15  # latents of one decoding pass


@dataclass(frozen=True, slots=True)
class Videos:
    """A batch of videos in the making, as a value. All have the same length and change prompts at the same frame."""

    pairs: tuple[int, ...]  # their numbers among the prompt pairs
    switch: int | None  # frame
    memory: Memory
    length: int = 0
    previous: Tensor | None = None  # the latest frames, a clip

    @property
    def is_switched(self) -> bool:
        """Whether the next frame is under the second prompt."""
        return self.switch is not None and self.length >= self.switch


@dataclass(frozen=True, slots=True)
class Codec:
    """A VAE, ours or the host's: what decodes one batch of videos, and what encodes one."""

    decoder: Callable[[], VideoDecoder]
    encoder: Callable[[], VideoEncoder]

    @classmethod
    def of_vae(cls, vae: WanVAE) -> "Codec":
        return cls(lambda: StreamingDecoder(vae, at_once=AT_ONCE), lambda: StreamingEncoder(vae))

    def anchored(self, latents_BFCHW: Tensor) -> Tensor:
        """The last picture of latents, as the latents [B, 1, C, H, W] of a video that begins with it."""
        decoder, encoder = self.decoder(), self.encoder()
        pixels = torch.cat([decoder.push(latents_BFCHW), decoder.flush()], dim=1)
        return torch.cat([encoder.push(pixels[:, -1:]), encoder.flush()], dim=1)


class Stream:
    """Makes batches of videos longer."""

    def __init__(self, student: Student, codec: Codec, config: StreamConfig) -> None:
        self.student, self.codec, self.config = student, codec, config
        block = student.config.block
        if config.clip % block or config.overlap % block:
            raise ConfigError(
                f"clip {config.clip} and overlap {config.overlap} are no whole blocks; use multiples of {block}"
            )
        check_positions(student.config, config.length)
        if student.config.window > config.clip:
            raise ConfigError(
                f"the window of {student.config.window} frames is longer than a clip of {config.clip}, which is all "
                f"that a recache finds; use a window of at most {config.clip}"
            )

    def begun(self, pairs: tuple[int, ...], switch: int | None) -> Videos:
        """Videos of no frames yet."""
        return Videos(pairs, switch, Memory.empty(self.student.wan.geometry.num_layers))

    def is_over(self, sequence: Videos) -> bool:
        """Whether no further chunk fits."""
        return sequence.length + self._new_frames(sequence) > self.config.length

    def _new_frames(self, sequence: Videos) -> int:
        return self.config.clip - (self.config.overlap if sequence.length else 0)

    def chunk(
        self, sequence: Videos, embedding_BLD: Tensor, draws: Draws, rollout: nn.Module | None = None
    ) -> tuple[Judged, Videos]:
        """The next clip and the sequence after it, under the prompt that `is_switched` tells.

        `rollout` is what stands for the student where something wraps it.
        """
        memory, start, previous = sequence.memory, sequence.length, sequence.previous
        if start and start == sequence.switch and previous is not None:
            memory = self._recached(memory, start, previous, embedding_BLD)
        blocks = self._new_frames(sequence) // self.student.config.block
        new, memory = (rollout or self.student)(memory, start, blocks, embedding_BLD, draws)
        clip, is_new = self._clip(previous, new)
        video = new.detach() if previous is None else torch.cat([previous, new.detach()], dim=1)
        after = replace(
            sequence, memory=memory, length=start + new.shape[1], previous=video[:, video.shape[1] - self.config.clip :]
        )
        return Judged(clip, is_new, embedding_BLD), after

    def _clip(self, previous: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """What is judged, and which of its frames are new."""
        is_new = torch.ones(self.config.clip, dtype=torch.bool, device=new.device)
        if previous is None:
            return new, is_new
        is_new[: self.config.overlap] = False
        before = previous.shape[1] - self.config.overlap + 1  # frames up to the picture that the clip begins with
        with torch.no_grad():
            first = self.codec.anchored(previous[:, max(0, before - self.config.anchored_on) : before])
        return torch.cat([first.to(new), previous[:, before:], new], dim=1), is_new

    def _recached(self, memory: Memory, start: int, previous: Tensor, embedding_BLD: Tensor) -> Memory:
        window = self.student.window
        if self.config.reference_behaviour:
            place = self._reference_place(start, previous.shape[1])
            memory = memory.forgotten(window.sink)
        else:
            place = window.recache(start, renew=self.config.boundary is Boundary.RENEW)
        return self.student.recached(memory, place, previous[:, previous.shape[1] - place.frames :], embedding_BLD)

    def _reference_place(self, start: int, frames: int) -> Placement:
        """Where the reference's trainer recaches a whole clip: the sink only while the clip reaches back to it."""
        window = self.student.window
        slots: list[int | None] = [None] * (frames - window.recent)
        slots += [window.slot(frame) for frame in range(start - window.recent, start)]
        if start == frames:
            slots[: window.sink] = range(window.sink)
        return window.place(start - frames, frames, slots)
