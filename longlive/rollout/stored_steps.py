"""What the steps of a video leave in a store: a finished block of latents, the blocks in flight, or both.

A rewound video has no blocks in flight. They are found under the key of the step that left them, or come back by
repeating the steps from an earlier state of the video on.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..session.block_store import LATENTS, Entry, Expected
from ..session.in_flight import Step
from ..session.session import Session

IN_FLIGHT = "in_flight"  # the name of their latents in a store


def find_earlier(session: Session, blocks: int) -> Session:
    """Return a video as it was when it had so many blocks and went on from there, without those in flight."""
    frame = blocks * session.config.block
    return replace(
        session,
        switches=tuple(switch for switch in session.switches if switch.frame <= frame),
        blocks=session.blocks[:blocks],
        keys=session.keys[:blocks],
        in_flight=None,
        ends=tuple(end for end in session.ends if end <= frame),
    )


def expect_entry(session: Session, step: Step) -> Expected:
    """Say what a step of a session leaves, as an entry of a store."""
    batch, frames, *cell = session.block_shape
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if step.finishes:
        expected[LATENTS] = session.block_shape, session.dtype
    if step.left:
        expected[IN_FLIGHT] = (batch, step.left * frames, *cell), session.dtype
    return expected


def make_step_entry(step: Step, latents: tuple[Tensor, ...]) -> Entry:
    """Return what a step left, the finished block first, as an entry of a store."""
    finished = {LATENTS: latents[0]} if step.finishes else {}
    return finished | ({IN_FLIGHT: torch.cat(latents[step.finishes :], dim=1)} if step.left else {})


def list_latents(entry: Entry, block: int) -> list[Tensor]:
    """List the blocks of an entry, the finished one first."""
    return [each for name in (LATENTS, IN_FLIGHT) if name in entry for each in entry[name].split(block, dim=1)]
