"""A video in progress, as an immutable value: prompts, finished latents, seed and settings.

It holds no KV cache: that is rebuilt from it (`rollout/cache_passes.py`). A store finds a block by its key, a hash of
all that determines the block. Blocks from a session file get other keys (`Session.rekeyed`). `switches` are decisions;
the passes follow the changes that these make (`switch.py`). A rolling video also has blocks in flight (`in_flight.py`).
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import RolloutConfig, RolloutKind, check_seed
from ..digest import hash_facts, hash_tensors
from ..errors import ConfigError, SessionError
from ..units import FPS, PIXELS_PER_CELL, SIZE_STEP, convert_blocks_to_seconds, count_pixel_frames
from .boundary import Blend, Boundary, spell_beginning
from .in_flight import InFlight, Step, plan_joint_step
from .prompt import Prompt
from .switch import Change, Switch
from .timeline import spell_blocks

KEY_VERSION = 1  # raised whenever the same inputs would give other latents
FROM_OUTSIDE = "a block that was not made here"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Identifies one state of a video. Does not keep its latents alive."""

    base: str
    keys: tuple[str, ...]
    blocks: tuple[weakref.ref[Tensor], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """A video in progress. `blocks` are latents [1, F, C, h, w] on the CPU, in the model's space and dtype."""

    model: str  # digest of the weights
    config: RolloutConfig
    height: int  # pixels
    width: int
    seed: int
    dtype: torch.dtype
    channels: int
    switches: tuple[Switch, ...]
    blocks: tuple[Tensor, ...] = ()
    keys: tuple[str, ...] = ()  # of the blocks
    in_flight: InFlight | None = None  # of a rolling video: the blocks that have begun
    ends: tuple[int, ...] = ()  # of a rolling video: the frames at which it was finished

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            if size <= 0 or size % SIZE_STEP:
                below = max(SIZE_STEP, size // SIZE_STEP * SIZE_STEP)
                raise ConfigError(
                    f"{name} is {size}; it must be a positive multiple of {SIZE_STEP}, "
                    f"for example {below} or {below + SIZE_STEP}"
                )
        check_seed(self.seed)

    @classmethod
    def start(cls, prompt: Prompt | None = None, **fields) -> "Session":
        """Begin a video without frames; its first prompt may come later, by `switched_to`."""
        session = cls(switches=(), **fields)
        return session.switched_to(prompt) if prompt else session

    @property
    def num_frames(self) -> int:
        return len(self.blocks) * self.config.block

    @property
    def pixel_frames(self) -> int:
        return count_pixel_frames(self.num_frames)

    @property
    def seconds(self) -> float:
        """Duration of the decoded file: a little less than that of its blocks; its first frame is one pixel frame."""
        return self.pixel_frames / FPS

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of one block of latents: [1, F, C, h, w]."""
        cells = (self.height // PIXELS_PER_CELL, self.width // PIXELS_PER_CELL)
        return (1, self.config.block, self.channels, *cells)

    @property
    def origin(self) -> int:
        """The frame that positions count from: where the last cut is, or 0 without a cut."""
        return max((switch.frame for switch in self.switches if switch.boundary is Boundary.CUT), default=0)

    @property
    def num_begun(self) -> int:
        """Blocks that have begun: those finished and those in flight."""
        left = self.config.num_in_flight if self.lacks_in_flight else 0
        return len(self.blocks) + (len(self.in_flight.blocks) if self.in_flight else left)

    @property
    def lacks_in_flight(self) -> bool:
        """Whether blocks would be in flight here that the session does not have, as after a rewind."""
        has_begun = self.num_frames not in (self.origin, *self.ends)
        return has_begun and self.config.num_in_flight > 0 and self.in_flight is None

    @property
    def noise_seed(self) -> int:
        """The seed of the next block's noise: the last one that a switch gave, else the session's."""
        given = (switch.seed for switch in reversed(self.switches) if switch.seed is not None)
        return next(given, self.seed)

    @property
    def last_change(self) -> Change:
        """The change of the prompt under which the next block is made. Only for a session with a prompt."""
        return self.switches[-1].find_change(self.num_frames, self.config.block)

    def list_changes(self) -> list[Change]:
        """List the changes of the prompt up to the next block: a switch that blends has one for each of its blocks."""
        ends = [*(switch.frame for switch in self.switches[1:]), self.num_frames + 1]
        pairs = zip(self.switches, ends, strict=True) if self.switches else ()
        return [change for switch, end in pairs for change in switch.list_changes(end, self.config.block)]

    def switched_to(
        self,
        prompt: Prompt,
        boundary: Boundary = Boundary.RECACHE,
        *,
        seed: int | None = None,
        blend: Blend | None = None,
    ) -> "Session":
        """Return the video with another prompt from here on, and with another seed if one is given.

        A `blend` has the boundary RECACHE; the next switch ends it. Before the first frame this only replaces prompt
        and seed. A second switch at the same frame replaces the first. A cut drops what is in flight. Raises
        ConfigError for a seed out of range, and SessionError while blocks are in flight and none is finished.
        """
        if not self.blocks and self.in_flight:
            raise SessionError(
                f"{len(self.in_flight.blocks)} blocks have begun and none is finished yet; switch the prompt after the "
                f"first block, or begin the video again"
            )
        if not self.blocks:
            return replace(self, switches=(Switch(0, Boundary.CUT, prompt, seed),))
        earlier = tuple(switch for switch in self.switches if switch.frame < self.num_frames)
        before = earlier[-1].find_change(self.num_frames - 1, self.config.block).prompt if blend else None
        switch = Switch(self.num_frames, boundary, prompt, seed, blend, before)
        in_flight = None if boundary is Boundary.CUT else self.in_flight
        return replace(self, switches=(*earlier, switch), in_flight=in_flight)

    def plan_step(self, end: int | None = None) -> Step:
        """Plan what is computed next. No block at or after number `end` begins, if it is given."""
        if self.config.kind is not RolloutKind.ROLLING:
            return Step()
        return plan_joint_step(self.in_flight, len(self.config.steps), grows=end is None or self.num_begun < end)

    def count_passes(self, blocks: int) -> int:
        """Count the denoising passes until so many more blocks are finished."""
        steady = self.config.num_in_flight  # the level of the oldest block in flight, in the midst of a video
        level = self.in_flight.level if self.in_flight else steady if self.lacks_in_flight else 0
        return blocks * self.config.passes_per_block + steady - level

    def advanced_by(self, step: Step, latents: Sequence[Tensor], key: str) -> "Session":
        """Return the video after a step that left these latents, and the step's key.

        `latents` are [1, F, C, h, w], oldest first: the finished block, if there is one, and those in flight.
        """
        video = self.extended_by(latents[0], key) if step.finishes else self
        left = tuple(each.detach().to("cpu", self.dtype) for each in latents[step.finishes :])
        if left:
            return replace(video, in_flight=InFlight(left, step.level_after, key))
        is_end = self.config.num_in_flight > 0
        return replace(video, in_flight=None, ends=(*video.ends, video.num_frames) if is_end else video.ends)

    def extended_by(self, latents: Tensor, key: str) -> "Session":
        """Return the video with one more block [1, F, C, h, w], moved to the CPU, and that block's key."""
        assert latents.shape == self.block_shape, (latents.shape, self.block_shape)
        block = latents.detach().to("cpu", self.dtype)
        return replace(self, blocks=(*self.blocks, block), keys=(*self.keys, key))

    def rewound_to(self, frame: int) -> "Session":
        """Return the first `frame` frames of the video.

        Raises SessionError if that ends inside a block, or among blocks that were finished with nothing behind them.
        """
        blocks, rest = divmod(frame, self.config.block)
        if rest or not 0 <= frame <= self.num_frames:
            fitting = min(max(blocks, 0), len(self.blocks)) * self.config.block
            raise SessionError(
                f"cannot rewind to frame {frame}: the video has {self.num_frames} frames in blocks of "
                f"{self.config.block}; use a block's start, for example {fitting}"
            )
        self._check_not_at_end(frame)
        switches = tuple(switch for switch in self.switches if switch.frame < frame or switch.frame == 0)
        return replace(
            self,
            switches=switches,
            blocks=self.blocks[:blocks],
            keys=self.keys[:blocks],
            in_flight=self.in_flight if frame == self.num_frames else None,
            ends=tuple(end for end in self.ends if end <= frame),
        )

    def find_run(self, frame: int) -> int:
        """Find where the run of a rolling video that holds `frame` begins: at its first frame, a cut or an end."""
        cuts = (switch.frame for switch in self.switches if switch.boundary is Boundary.CUT)
        return max(start for start in (0, *cuts, *self.ends) if start <= frame)

    def _check_not_at_end(self, frame: int) -> None:
        """Check that a frame is not among the last blocks before an end, or before one that has begun.

        Raises SessionError.
        """
        is_ending = self.in_flight is not None and not self.in_flight.can_grow
        for end in (*self.ends, *([self.num_begun * self.config.block] if is_ending else [])):
            first = max(self.find_run(end - 1), end - self.config.num_in_flight * self.config.block)
            if first < frame < min(end, self.num_frames):
                raise SessionError(
                    f"cannot rewind to frame {frame}: the blocks from frame {first} to {end} were finished together, "
                    f"with nothing behind them; rewind to frame {first} or before, or continue at frame {end}"
                )

    def rekeyed(self) -> "Session":
        """Return the video under keys that hash its content, not how it was made: for a video from a file.

        A block's key hashes the key before it, its latents and the switch at its beginning, if any. So two copies of
        one video have the same keys, and none that a video made here has, also in the blocks added later.
        """
        switches = {switch.frame: switch.list_facts() for switch in self.switches}
        keys, key = [], self._compute_base_key()
        for number, block in enumerate(self.blocks):
            switch = switches.get(number * self.config.block)
            key = hash_facts([FROM_OUTSIDE, key, number, hash_tensors({"": block}), switch])
            keys.append(key)
        video = replace(self, keys=tuple(keys))
        if self.in_flight is None:
            return video
        content = hash_tensors({str(number): each for number, each in enumerate(self.in_flight.blocks)})
        in_flight = replace(self.in_flight, key=hash_facts([FROM_OUTSIDE, key, self.in_flight.level, content]))
        return replace(video, in_flight=in_flight)

    def frames(self, start: int, count: int) -> Tensor:
        """Return the latents [1, count, C, h, w] from frame `start` on."""
        if not count:
            return torch.empty(1, 0, *self.block_shape[2:], dtype=self.dtype)
        first, last = start // self.config.block, -(-(start + count) // self.config.block)
        offset = start - first * self.config.block
        return torch.cat(self.blocks[first:last], dim=1)[:, offset : offset + count]

    def latents(self) -> Tensor:
        """Return all latents [1, N, C, h, w]."""
        return self.frames(0, self.num_frames)

    def compute_next_key(self, kernel: str, step: Step | None = None) -> str:
        """Compute the key of the next step if `kernel` makes it: a hash of all that determines its latents."""
        step = step or self.plan_step()
        before = self.in_flight.key if self.in_flight else self.keys[-1] if self.keys else self._compute_base_key()
        facts: list[object] = [before, len(self.blocks), kernel]
        if self.config.kind is RolloutKind.ROLLING:
            facts += ["rolling", step.level, step.count, step.enters]
        change = self.last_change
        return hash_facts(facts + change.list_facts() if change.frame == self.num_frames else facts)

    def describe(self) -> str:
        """Describe length, size, settings and every switch as text."""
        config = self.config
        length = f"{self.num_frames} frames, {self.pixel_frames} pixel frames, {self.seconds:.2f} s"
        if self.in_flight:
            length += f", {spell_blocks(len(self.in_flight.blocks))} in flight"
        if self.ends:
            length += f", finished at frame {', '.join(map(str, self.ends))}"
        lines = [
            f"{spell_blocks(len(self.blocks))}, {length}",
            f"{self.width} x {self.height}, seed {self.seed}, window {config.window} with sink {config.sink}, "
            f"block {config.block}, steps {', '.join(map(str, config.steps))}, shift {config.shift:g}, "
            f"context noise {config.context_noise:g}, {config.positions.value} positions, {config.kind.value}",
        ]
        for switch in self.switches:
            begins = convert_blocks_to_seconds(switch.frame // config.block, config.block)
            how = str(switch) if switch.frame else spell_beginning(switch.seed)
            lines.append(f"{begins:7.2f} s  frame {switch.frame:<5} {how:<8} {switch.prompt}")
        return "\n".join(lines)

    def _compute_base_key(self) -> str:
        size = [self.height, self.width, self.channels]
        return hash_facts([KEY_VERSION, self.model, self.config.as_dict(), size, self.seed, str(self.dtype)])

    def trace(self) -> Trace:
        """Identify this state of the video."""
        return Trace(self._compute_base_key(), self.keys, tuple(map(weakref.ref, self.blocks)))

    def continues(self, earlier: Trace) -> bool:
        """Return whether `earlier` is an earlier state of this video: the same keys and the same tensors.

        The keys alone are not enough: latents made elsewhere may have the same keys and differ in their last bits.
        """
        shared = len(earlier.keys)
        same_keys = self._compute_base_key() == earlier.base and self.keys[:shared] == earlier.keys
        return same_keys and all(
            block() is own for block, own in zip(earlier.blocks, self.blocks[:shared], strict=True)
        )

    def begins_with(self, other: "Session") -> bool:
        """Return whether this video begins with all frames of `other`, wherever that was made."""
        ours, theirs = ((s.model, s.config, s.height, s.width, s.seed, s.dtype) for s in (self, other))
        if ours != theirs or len(self.blocks) < len(other.blocks):
            return False
        return all(torch.equal(a, b) for a, b in zip(self.blocks, other.blocks, strict=False))
