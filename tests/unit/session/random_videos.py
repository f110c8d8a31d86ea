"""Sessions with blocks of random latents: no model is needed to make them."""

import tiny
import torch

from longlive.session.session import Session

KERNEL = "cpu sdpa"


def draw_block(session: Session, number: int) -> torch.Tensor:
    return torch.randn(session.block_shape, generator=torch.Generator().manual_seed(number))


def add_block(session: Session, number: int) -> Session:
    return session.extended_by(draw_block(session, number), session.compute_next_key(KERNEL))


def make_video(blocks: int, session: Session | None = None) -> Session:
    """Return a video of random latents."""
    session = session or tiny.session()
    for number in range(blocks):
        session = add_block(session, number)
    return session
