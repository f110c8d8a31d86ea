"""When a block is made, and when a run gives up the machine: nobody should pay for blocks that nobody watches.

Knows a clock, no tensor and no file.
"""

import math
import time
from collections.abc import Callable
from enum import StrEnum

LEAD_BLOCKS = 2  # ahead of the viewer who is furthest
MEMORY_SECONDS = 10.0  # after which a viewer who says nothing is forgotten
PATIENCE_SECONDS = 30.0  # without a viewer, or without a block


class Status(StrEnum):
    """What a run is doing."""

    WAITING = "waiting"  # for the first prompt
    MAKING = "making"
    PAUSED = "paused"
    AHEAD = "ahead"  # of the viewers: waits for them
    PARKED = "parked"  # over, because nothing was made or nobody watched for a while
    STOPPED = "stopped"
    COMPLETE = "complete"  # has its largest length
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (Status.PARKED, Status.STOPPED, Status.COMPLETE, Status.INTERRUPTED, Status.FAILED)


class Pace:
    """Decides after each block what a run does next.

    `longest` is the largest length of the video in seconds; `patience` are the seconds after which a run is parked.
    Without `is_watched`, blocks are made as fast as they can be, and the run is never parked.
    """

    def __init__(
        self,
        *,
        longest: float | None = None,
        is_watched: bool = True,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest, self.is_watched, self.is_paused = longest, is_watched, False
        self._clock, self._patience = clock, patience
        self._heard = self._active = clock()  # the last viewer's message; the last block or other message
        self._viewers: dict[str, tuple[float, float]] = {}  # when each was heard, and where it is
        self._furthest = 0.0  # seconds of the video
        self._moved = self._active  # when a viewer was last heard in another place than before

    def observe(self, viewer: str, seconds: float, heard: float) -> None:
        """Learn where a viewer is, in seconds of the video, and when it said so."""
        if self._viewers.get(viewer, (heard, seconds))[1] != seconds:
            self._moved = max(self._moved, heard)
        self._viewers[viewer] = heard, seconds
        self._heard = max(self._heard, heard)

    def keep_awake(self) -> None:
        """Learn that a block was made, or that somebody wants something."""
        self._active = self._clock()

    def rewind(self, seconds: float) -> None:
        """Learn that the video ends at `seconds` now, so no viewer can be further."""
        self._furthest = min(self._furthest, seconds)
        self._viewers = {name: (heard, min(place, seconds)) for name, (heard, place) in self._viewers.items()}

    def count_blocks(self, block: float) -> int | None:
        """Count the blocks of `block` seconds with which the video has its largest length; None if it has none."""
        return None if self.longest is None else math.ceil(self.longest / block)

    def choose(
        self, made: float, block: float, *, has_prompt: bool = True, is_held: bool = False, is_urgent: bool = False
    ) -> Status:
        """Choose what to do when the video is `made` seconds long and a block adds `block`.

        A video that is held waits as if it was paused. What is urgent is made without a viewer.
        """
        if self.longest is not None and made >= self.longest:
            return Status.COMPLETE
        if self.is_paused or is_held:
            status = Status.PAUSED
        elif not has_prompt:
            status = Status.WAITING
        elif is_urgent or not self.is_watched or made < self._find_furthest(made) + LEAD_BLOCKS * block:
            status = Status.MAKING
        else:
            status = Status.AHEAD
        needs_nobody = not self.is_watched or (is_urgent and status is Status.MAKING)
        is_played = status in (Status.AHEAD, Status.MAKING)  # by a viewer who is on the way to the end
        active = max(self._active, self._moved) if is_played else self._active
        if not needs_nobody and self._clock() - min(self._heard, active) > self._patience:
            return Status.PARKED
        return status

    def _find_furthest(self, made: float) -> float:
        """Find the place of the viewer who is furthest, or was, if none was heard for a while.

        Who says to be behind the end of the video has not heard of a rewind yet, and stays at its end.
        """
        oldest = self._clock() - MEMORY_SECONDS
        self._viewers = {name: (heard, min(at, made)) for name, (heard, at) in self._viewers.items() if heard >= oldest}
        if self._viewers:
            self._furthest = max(place for _, place in self._viewers.values())
        return min(self._furthest, made)
