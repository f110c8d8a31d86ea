"""Tiny directed videos that the tests of this folder share."""

import json
from collections.abc import Sequence
from pathlib import Path

import tiny
import torch
from torch import Tensor

from longlive.config import RolloutConfig
from longlive.errors import ConditioningError
from longlive.live.director import Director
from longlive.live.inbox import Inbox
from longlive.live.messages import read_message
from longlive.live.pace import Pace, Status
from longlive.live.take import Take
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.session.timeline import parse_timeline, plan_ends
from longlive.video.film import Film
from longlive.video.render import VideoRenderer

TAKE = "0123456789abcdef" * 2
BLOCK_SECONDS = 0.75


def say(prompt: str, **fields) -> str:
    """Write the message that says a prompt."""
    return json.dumps({"do": "say", "prompt": prompt, **fields})


def do(name: str, **fields) -> str:
    """Write another message."""
    return json.dumps({"do": name, **fields})


def encode(text: str) -> Prompt:
    """Encode a text by chance, always the same."""
    if "unreadable" in text:
        raise ConditioningError("the prompt cannot be read; write another")
    seed = sum(ord(char) * (place + 1) for place, char in enumerate(text))
    return Prompt.of(torch.randn(1, 4, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(seed)), text)


def start_session(config: RolloutConfig | None = None) -> Session:
    """Begin a video without a prompt."""
    whole = tiny.session(config)
    return Session.start(
        model=whole.model,
        config=whole.config,
        height=whole.height,
        width=whole.width,
        seed=whole.seed,
        dtype=whole.dtype,
        channels=whole.channels,
    )


class QuickDecoder:
    """A `ResumableDecoder` that draws each latent in two channels, with a trace of the latent before it."""

    identity = "quick"

    def __init__(self) -> None:
        self.catch_up([])

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self._before = blocks[-1][:, -1:] if blocks else None

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        """Return one frame for the first latent of a video, and four for each other."""
        before = latents_BFCHW[:, :1] if self._before is None else self._before
        mixed = latents_BFCHW + 0.5 * torch.cat([before, latents_BFCHW[:, :-1]], dim=1)
        frames = mixed[:, :, [0, 1, 0]].repeat_interleave(4, dim=1)
        frames = frames[:, 3:] if self._before is None else frames
        self._before = latents_BFCHW[:, -1:]
        return frames.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).tanh()

    def flush(self) -> Tensor:
        self.catch_up([])
        return torch.empty(1, 0, 3, 0, 0)


class Stage:
    """A take in a folder, and a director who makes it. The director of another process opens it again."""

    def __init__(self, folder: Path, session: Session | None = None, *, store: Store | None = None, **settings) -> None:
        self.session = session or start_session()
        path, script = folder / TAKE, settings.pop("script", "")
        self.take = Take.open(path, self.session) if path.exists() else Take.create(path, self.session, script)
        self.sampler = Sampler(tiny.model(), store=store)
        self.states: list[dict] = []
        self.renderer = VideoRenderer(QuickDecoder(), self.take.film)
        self.director = Director(
            self.session,
            self.sampler,
            encode,
            renderer=self.renderer,
            take=self.take,
            on_change=self.states.append,
            **settings,
        )

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.take.close()
        self.sampler.close()

    def run(self, schedule: dict[int, list[str]], pace: Pace | None = None) -> Status:
        """Run with messages, each as JSON, that come when the video has so many blocks; stop after the last ones.

        The messages of -1 come when the run begins, those of one number together.
        """
        inbox, left = Inbox(), dict(schedule)
        self.director.poll = lambda: put_due(inbox, left, len(self.director.session.blocks))
        return self.director.run(inbox, pace or Pace(is_watched=False))

    @property
    def film_bytes(self) -> bytes:
        return (self.take.folder / "film.mp4").read_bytes()


def put_due(inbox: Inbox, left: dict[int, list[str]], blocks: int) -> None:
    for when in [when for when in left if when <= blocks]:
        for text in left.pop(when):
            inbox.put(read_message(text))


def render_script(folder: Path, script: str, session: Session | None = None) -> tuple[Session, bytes]:
    """Make the video of a script without a director, as Timeline and Decode do; return it and the bytes of its film."""
    session = session or start_session()
    film = Film.create(folder)
    renderer = VideoRenderer(QuickDecoder(), film)
    segments = parse_timeline(script, session.config.block)
    with Sampler(tiny.model()) as sampler:
        for segment, end in zip(segments, plan_ends(segments, len(session.blocks)), strict=True):
            prompt = encode(segment.prompt)
            session = session.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
            *_, session = sampler.extend(session, segment.blocks, end)
    for latents in session.blocks:
        renderer.render_block(latents)
    return session, (folder / "film.mp4").read_bytes()
