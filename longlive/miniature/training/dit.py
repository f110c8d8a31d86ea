"""Training of the miniature's network from nothing: teacher forcing, then also on its own rollouts."""

from dataclasses import dataclass

import torch

from ...model.wan import WanModel
from ..clips import seed_random
from .bank import Bank
from .lessons import GEOMETRY, PATTERN_SHARES
from .network import EVALUATE_EVERY, NetworkTraining
from .optimizer import lay_channels_last


@dataclass(frozen=True, slots=True, kw_only=True)
class DitRecipe:
    """How the network is trained."""

    seed: int = 0
    steps: int = 3400
    batch: int = 8  # clips per step
    openings: int = 24  # clips per step of which only the first block is trained: prompts and noise decide it
    openings_from: float = 0.15  # share of the steps before those
    rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.5  # the last share of the steps, in which the rate falls to zero
    own_from: float = 0.5  # share of the steps before the network sees its own rollouts
    own_share: tuple[float, float] = (0.1, 0.4)  # of later steps that do, at first and in the last quarter
    own_every: int = 40  # steps between two batches of rollouts
    own_held: int = 24  # batches of rollouts that are kept


class DitTraining(NetworkTraining[DitRecipe]):
    """The training of the network from nothing."""

    def __init__(self, recipe: DitRecipe, bank: Bank, unseen: Bank) -> None:
        model = WanModel(GEOMETRY)
        initialize_model(model, torch.Generator().manual_seed(recipe.seed))
        super().__init__(recipe, model, bank, unseen)

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = seed_random(f"dit {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        progress = n / recipe.steps
        if progress >= recipe.own_from and n % recipe.own_every == 0:
            self.add_rollouts(draw, PATTERN_SHARES)
        early, late = recipe.own_share
        is_own = bool(self.own_rollouts) and draw.random() < (late if progress >= 0.75 else early)
        figures = self.teach_own(draw, noise) if is_own else self.teach_truth(draw, noise)
        if progress >= recipe.openings_from:
            figures |= self.teach_openings(draw, noise)
        self.finish_step()
        if self.num_steps % EVALUATE_EVERY == 0:
            figures |= self.evaluate()
        return figures


def initialize_model(model: WanModel, generator: torch.Generator) -> None:
    """Set weights that train, in place."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("modulation") or name == "head.head.weight":
                weight.normal_(0, 0.02, generator=generator)
            else:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    lay_channels_last(model)
