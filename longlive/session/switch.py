"""A switch of the prompt as it was decided, and the changes that make it: one, or one for each block of a blend."""

from dataclasses import dataclass
from functools import cached_property

from ..config import check_seed
from .boundary import Blend, Boundary, spell_switch
from .prompt import Prompt, mix_prompts


@dataclass(frozen=True, slots=True)
class Switch:
    """Another prompt from `frame` on. `seed` is that of the noise from there on; None keeps the one before.

    A `blend` has the boundary RECACHE and begins with the prompt `before`. Raises ConfigError for a seed out of range.
    """

    frame: int
    boundary: Boundary
    prompt: Prompt
    seed: int | None = None
    blend: Blend | None = None
    before: Prompt | None = None

    def __post_init__(self) -> None:
        if (self.blend is None) != (self.before is None):
            raise ValueError("a blend, and only a blend, begins with the prompt before it")
        if self.blend and self.boundary is not Boundary.RECACHE:
            raise ValueError(f"a blend recaches at each of its blocks; it cannot have the boundary {self.boundary}")
        if self.seed is not None:
            check_seed(self.seed)

    def __str__(self) -> str:
        return spell_switch(self.boundary, self.blend, self.seed)

    def list_facts(self) -> list[object]:
        """List what it says as JSON values, prompts by their digests."""
        facts: list[object] = [self.boundary.value, self.prompt.digest]
        if self.seed is not None:
            facts += ["seed", self.seed]
        if self.blend and self.before:
            facts += ["blend", self.blend.blocks, self.blend.curve.value, self.before.digest]
        return facts

    @property
    def num_changes(self) -> int:
        return self.blend.blocks if self.blend else 1

    def list_changes(self, end: int, block: int) -> "list[Change]":
        """List its changes before frame `end`, in a video of blocks of `block` frames."""
        started = -(-(end - self.frame) // block)
        return [Change(self, number, block) for number in range(min(started, self.num_changes))]

    def find_change(self, frame: int, block: int) -> "Change":
        """Find its newest change at or before `frame`, in a video of blocks of `block` frames."""
        return Change(self, min((frame - self.frame) // block, self.num_changes - 1), block)


@dataclass(frozen=True, eq=False)
class Change:
    """A change of the prompt at one frame: change `number`, from 0, of a switch."""

    switch: Switch
    number: int
    block: int  # frames

    @property
    def frame(self) -> int:
        return self.switch.frame + self.number * self.block

    @property
    def boundary(self) -> Boundary:
        return self.switch.boundary

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt from here on: that of the switch or, within a blend, its mix with the one before."""
        switch, done = self.switch, self.number + 1
        if switch.blend is None or switch.before is None or done == switch.num_changes:
            return switch.prompt
        weights, text = (switch.num_changes - done, done), f"{switch.prompt}, {done} of {switch.num_changes}"
        return mix_prompts((switch.before, switch.prompt), weights, switch.blend.curve, text)

    def list_facts(self) -> list[object]:
        """List what the key of the block that begins here has to name; a blend by the prompt that it has reached."""
        facts: list[object] = [self.boundary.value, self.prompt.digest]
        return facts if self.number or self.switch.seed is None else [*facts, "seed", self.switch.seed]
