"""What an evaluation of the miniature samples: prompts, switches, windows, and the frames it looks at."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from ...config import Positions, RolloutConfig
from ...errors import ConfigError
from ...session.boundary import Boundary
from ..clips import choose_scene, seed_random
from ..grammar import Scene

UNBOUNDED = RolloutConfig(positions=Positions.UNBOUNDED)


class SwitchCase(NamedTuple):
    """One way to make a switch."""

    opening: int  # latents before the switch
    boundary: Boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """Sizes of an evaluation, in latents unless stated."""

    config: RolloutConfig = UNBOUNDED
    openings: tuple[int, ...] = (12, 24)  # before a switch: the window just full, and rolled, so the sink may be kept
    segment_frames: int = 15
    num_segments: int = 6
    windows: tuple[tuple[int, int], ...] = ((12, 0), (12, 3), (21, 0))  # (window, sink); training draws each of them
    marks: tuple[int, ...] = (6, 30, 60, 120, 180, 240)  # of a long video, whose second up to each mark is observed
    table_marks: tuple[int, ...] = (60, 240)  # of these, the marks in the table
    untimed_blocks: int = 10  # blocks until every window has rolled; later blocks are timed

    @property
    def released_window(self) -> tuple[int, int]:
        return self.config.window, self.config.sink

    @property
    def switch_cases(self) -> list[SwitchCase]:
        """The cases to compare. RENEW is one only beyond the window: up to there every recache rewrites the sink."""
        return [
            SwitchCase(opening, boundary)
            for opening in self.openings
            for boundary in (Boundary.CUT, Boundary.KEEP, Boundary.RECACHE, Boundary.RENEW)
            if boundary is not Boundary.RENEW or opening > self.config.window
        ]

    def name_case(self, case: SwitchCase) -> str:
        sinks = {Boundary.RECACHE: "sink kept", Boundary.RENEW: "sink renewed"}
        if case.boundary in sinks and case.opening > self.config.window:
            return f"recache, {sinks[case.boundary]}"
        return case.boundary.value


def check_seeds(seeds: int) -> None:
    """Raise ConfigError for fewer than two seeds."""
    if seeds < 2:
        raise ConfigError(f"seeds is {seeds}; intervals need at least 2 videos, the published tables have 32")


def choose_scenes(seed: int, count: int) -> list[Scene]:
    """Choose the scenes of a seed. Neighbours share nothing except, at times, the background."""
    draw = seed_random("claims", seed)
    scenes = [choose_scene(draw)]
    while len(scenes) < count:
        scenes.append(choose_other_scene(scenes[-1], draw))
    return scenes


def choose_other_scene(scene: Scene, draw: random.Random) -> Scene:
    """Choose a scene of another colour, shape and motion."""
    while True:
        other = choose_scene(draw, anywhere=False)
        if all(getattr(scene, name) is not getattr(other, name) for name in ("colour", "shape", "motion")):
            return other
