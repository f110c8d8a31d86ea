"""Where the miniature's videos are made to be looked at: begun once, they go on in several ways.

Knows nothing of what they are made for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import FPS, PIXEL_FRAMES_PER_FRAME, RolloutConfig
from ..model.vae import LATENT_CHANNELS, Past, StreamingDecoder
from ..rollout import PassKind
from ..sampler import Sampler
from ..session import Prompt, Session
from ..timeline import Boundary
from .files import Miniature
from .grammar import Scene
from .world import SIZE

LEAD = 6  # frames decoded before those wanted: the VAE then knows all it remembers, to a tenth of a byte
AT_ONCE = 15  # frames of one decoding pass; on one thread short passes take several times as long


@dataclass(frozen=True, slots=True)
class Take:
    """A video in progress and its pixels, as a value."""

    session: Session
    past: Past = field(default_factory=Past)  # of its decoder
    pixels_FCHW: Tensor = field(default_factory=lambda: torch.empty(0, 3, SIZE, SIZE))


class Stage(Sampler):
    """A sampler of takes; `done` is called for every block."""

    def __init__(self, miniature: Miniature, done: Callable[[], object]) -> None:
        super().__init__(
            miniature.model, watch=lambda made: done() if made.kind is PassKind.DENOISE and not made.step else None
        )
        self.miniature = miniature

    def __enter__(self) -> "Stage":
        return self

    def prompt(self, scene: Scene) -> Prompt:
        return Prompt.of(self.miniature.text(str(scene)), str(scene))

    def begun(self, scene: Scene, seed: int, config: RolloutConfig) -> Session:
        """A video of no frames yet."""
        return Session.start(
            self.prompt(scene),
            model="miniature",
            config=config,
            height=SIZE,
            width=SIZE,
            seed=seed,
            dtype=self.model.dtype,
            channels=LATENT_CHANNELS,
        )

    def longer(self, take: Take, frames: int) -> Take:
        """The take with `frames` more, a whole number of blocks."""
        session = self.extended(take.session, frames // take.session.config.block)
        decoder = StreamingDecoder(self.miniature.vae, at_once=AT_ONCE)
        decoder.past.begun, decoder.past.seen = take.past.begun, dict(take.past.seen)
        new_FCHW = decoder.push(session.frames(take.session.num_frames, frames))[0]
        return Take(session, decoder.past, torch.cat([take.pixels_FCHW, new_FCHW]))

    def switched(self, take: Take, scene: Scene, boundary: Boundary, frames: int) -> Take:
        """The take with a segment of `frames` under another prompt."""
        return self.longer(replace(take, session=take.session.switched_to(self.prompt(scene), boundary)), frames)

    def latest_second(self, video: Session, frame: int) -> Tensor:
        """The second of pixels that ends with `frame` latents [F, 3, H, W], without decoding all that came before."""
        begin = max(0, frame - FPS // PIXEL_FRAMES_PER_FRAME - LEAD)
        decoder = StreamingDecoder(self.miniature.vae, at_once=AT_ONCE)
        return decoder.push(video.frames(begin, frame - begin))[0, -FPS:]
