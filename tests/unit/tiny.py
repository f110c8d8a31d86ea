"""Tiny seeded models and sessions that the unit tests share."""

import torch

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.wan import Geometry, WanModel
from longlive.session.boundary import Boundary
from longlive.session.prompt import Prompt
from longlive.session.session import Session

TEXT_DIM = 10
GEOMETRY = Geometry(dim=24, ffn_dim=32, num_heads=2, num_layers=3, freq_dim=8, text_dim=TEXT_DIM, text_len=6)


def model(geometry: Geometry = GEOMETRY, seed: int = 0) -> CausalWan:
    """Build a random network with large weights, so that a wrong key in any layer changes the result."""
    tree = WanModel(geometry)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in tree.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weight.data = offset + 0.15 * torch.randn(weight.shape, generator=generator)
    return CausalWan.of_tree(tree.requires_grad_(False))


def prompt(number: int) -> Prompt:
    embedding = torch.randn(1, 4, TEXT_DIM, generator=torch.Generator().manual_seed(number))
    return Prompt.of(embedding, f"prompt {number}")


def session(
    config: RolloutConfig | None = None, *, seed: int = 7, width: int = 32, dtype: torch.dtype = torch.float32
) -> Session:
    return Session.start(
        prompt(0),
        model="tiny",
        config=config or RolloutConfig(),
        height=16,
        width=width,
        seed=seed,
        dtype=dtype,
        channels=16,
    )


STORY = (
    (7, None),
    (3, Boundary.KEEP),
    (5, Boundary.RECACHE),
    (2, Boundary.RENEW),
    (6, Boundary.KEEP),
    (2, Boundary.CUT),
    (2, Boundary.RECACHE),
    (6, Boundary.RECACHE),
)
"""Segments of (blocks, boundary): every boundary, before and after the window is full, and after a cut."""
