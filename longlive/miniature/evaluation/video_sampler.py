"""Samples and decodes videos of the miniature; one video may be continued in several ways."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...config import RolloutConfig
from ...model.vae import LATENT_CHANNELS, Past
from ...model.vae_streams import StreamingDecoder
from ...rollout.sampler import Sampler
from ...session.boundary import Blend, Boundary
from ...session.prompt import Prompt
from ...session.session import Session
from ...units import FPS, PIXEL_FRAMES_PER_FRAME
from ..files import Miniature
from ..grammar import Scene
from ..world import SIZE

WARM_UP_FRAMES = 6  # decoded before the wanted ones: pixels are then right to a tenth of 1/255
FRAMES_PER_DECODE = 15  # on one thread, shorter passes take several times as long

OnBlock = Callable[[], object]
"""Called once for each block."""


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """A video in progress and its pixels. Immutable."""

    session: Session
    past: Past = field(default_factory=Past)  # of its decoder
    pixels_FCHW: Tensor = field(default_factory=lambda: torch.empty(0, 3, SIZE, SIZE))


class VideoSampler(Sampler):
    """A sampler that also decodes; it calls `on_block` for every block."""

    def __init__(self, miniature: Miniature, on_block: OnBlock = lambda: None) -> None:
        super().__init__(miniature.model)
        self.miniature, self.on_block = miniature, on_block

    def __enter__(self) -> "VideoSampler":
        return self

    def extend(self, session: Session, blocks: int, end: int | None = None) -> Iterator[Session]:
        """Yield the session after each of the next finished blocks, and call `on_block`."""
        for longer in super().extend(session, blocks, end):
            self.on_block()
            yield longer

    def make_prompt(self, scene: Scene) -> Prompt:
        return Prompt.of(self.miniature.text(str(scene)), str(scene))

    def start_session(self, scene: Scene, seed: int, config: RolloutConfig) -> Session:
        """Start a session that has no frames yet."""
        return Session.start(
            self.make_prompt(scene),
            model="miniature",
            config=config,
            height=SIZE,
            width=SIZE,
            seed=seed,
            dtype=self.model.dtype,
            channels=LATENT_CHANNELS,
        )

    def start_video(self, scene: Scene, seed: int, config: RolloutConfig, frames: int) -> SampledVideo:
        """Sample and decode the first `frames` of a video, a whole number of blocks."""
        return self.continue_video(SampledVideo(self.start_session(scene, seed, config)), frames)

    def continue_video(self, video: SampledVideo, frames: int) -> SampledVideo:
        """Sample and decode `frames` more, a whole number of blocks."""
        session = self.sample(video.session, frames // video.session.config.block)
        decoder = StreamingDecoder(self.miniature.vae, at_once=FRAMES_PER_DECODE)
        decoder.past.has_begun, decoder.past.seen = video.past.has_begun, dict(video.past.seen)
        new_FCHW = decoder.push(session.frames(video.session.num_frames, frames))[0]
        return SampledVideo(session, decoder.past, torch.cat([video.pixels_FCHW, new_FCHW]))

    def switch_video(
        self, video: SampledVideo, scene: Scene, boundary: Boundary, frames: int, blend: Blend | None = None
    ) -> SampledVideo:
        """Sample and decode a segment of `frames` under another prompt."""
        session = video.session.switched_to(self.make_prompt(scene), boundary, blend=blend)
        return self.continue_video(replace(video, session=session), frames)

    def decode_second(self, session: Session, end: int) -> Tensor:
        """Decode the second of pixels up to latent `end` [F, 3, H, W], without decoding the whole video."""
        begin = max(0, end - FPS // PIXEL_FRAMES_PER_FRAME - WARM_UP_FRAMES)
        decoder = StreamingDecoder(self.miniature.vae, at_once=FRAMES_PER_DECODE)
        return decoder.push(session.frames(begin, end - begin))[0, -FPS:]
