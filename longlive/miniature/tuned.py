"""The miniature before and after streaming long tuning: what it obeys, keeps and forgets (LongLive §3.2, §3.3).

Both are asked for the same videos, from the same noise, so every difference is paired by its seed.

Dimension key: S seeds, A attributes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError
from ..report import Cell, Estimate, Figure, Plot, Report, Table, curve, estimate
from ..timeline import Boundary
from .claims import CONFIG, MARKS, SEGMENT, SEGMENTS, Endurance, Glance, Story, Variety, Watched, scenes_of, shares
from .files import Miniature
from .grammar import ATTRIBUTES
from .stage import Stage, Take

WINDOWS = ((12, 0), (12, 3))  # latents (window, sink): without the sink, and as released
READ: Mapping[str, Callable[[Glance], float]] = {
    "likeness": lambda glance: glance.likeness,
    "sky correlation": lambda glance: glance.sky,
    "area": lambda glance: glance.area,
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What one model showed."""

    stories: tuple[Story, ...]
    windows: Mapping[tuple[int, int], Endurance]
    variety: Variety

    @classmethod
    def of(cls, miniature: Miniature, seeds: int, done: Watched) -> "Shown":
        stories = tuple(five_switches(miniature, seed, done) for seed in range(seeds))
        windows = {size: Endurance.of(miniature, size, seeds, done) for size in WINDOWS}
        return cls(stories, windows, Variety.of(miniature, seeds, done))

    @property
    def released(self) -> Endurance:
        return self.windows[CONFIG.window, CONFIG.sink]

    @property
    def right_SA(self) -> np.ndarray:
        """The share of right frames over the segments after a switch."""
        later = range(1, SEGMENTS)
        return np.array([np.mean([story.after_a_second(i).mean(1) for i in later], axis=0) for story in self.stories])

    @property
    def first_SA(self) -> np.ndarray:
        """The share of right frames of what a video begins with."""
        return np.stack([glances[0].right_A for glances in self.released.glances])


def report(before: Miniature, after: Miniature, seeds: int) -> Report:
    """Sample and measure both; half a minute a seed on one core. Raises ConfigError for fewer than two seeds."""
    if seeds < 2:
        raise ConfigError(f"seeds is {seeds}; intervals need at least 2 videos, the published tables have 32")
    frames = SEGMENT * SEGMENTS + MARKS[-1] * len(WINDOWS) + CONFIG.block
    with tqdm(total=2 * seeds * frames // CONFIG.block, unit="block", disable=None) as bar:
        one, two = (Shown.of(miniature, seeds, bar.update) for miniature in (before, after))
    return Report(
        f"The miniature before and after streaming long tuning, over {seeds} seeds",
        (adherence_table(one, two), windows_table(one, two), sink_table(one, two), variety_table(one, two)),
        (figure(one, two),),
    )


def five_switches(miniature: Miniature, seed: int, done: Watched) -> Story:
    """The story of a seed, every switch a recache."""
    first, *later = scenes = scenes_of(seed)
    with Stage(miniature, done) as stage:
        take = stage.longer(Take(stage.begun(first, seed, CONFIG)), SEGMENT)
        for scene in later:
            take = stage.switched(take, scene, Boundary.RECACHE, SEGMENT)
    return Story.of(scenes, {}, take.pixels_FCHW)


def three(before: np.ndarray, after: np.ndarray) -> dict[str, list[Estimate]]:
    """Shares [S, A] before, after, and their difference by seed."""
    return {
        "before": shares(before[..., None]),
        "after": shares(after[..., None]),
        "difference": [estimate(column) for column in (after - before).T],
    }


def adherence_table(one: Shown, two: Shown) -> Table:
    spans = {
        f"the first {MARKS[0]} latents": three(one.first_SA, two.first_SA),
        "from a second after each switch": three(one.right_SA, two.right_SA),
    }
    rows: list[tuple[Cell, ...]] = [
        (span, when, *found) for span, values in spans.items() for when, found in values.items()
    ]
    columns = (("span", ""), ("tuning", ""), *((name, ".1%") for name in ATTRIBUTES))
    note = f"{SEGMENTS} prompts of {SEGMENT} latents, sink kept. Differences are paired by seed."
    return Table("Adherence", columns, tuple(rows), note)


def windows_table(one: Shown, two: Shown) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for size in WINDOWS:
        endurances = (one.windows[size], two.windows[size])
        rights = three(*(np.stack([glances[-1].right_A for glances in e.glances]) for e in endurances))
        last = [np.stack([e.each(read)[:, -1] for read in READ.values()], axis=1) for e in endurances]
        facts = {"before": last[0], "after": last[1], "difference": last[1] - last[0]}
        rows += [
            (endurances[0].name, when, *rights[when], *(estimate(column) for column in facts[when].T))
            for when in rights
        ]
    columns = (
        ("window", ""),
        ("tuning", ""),
        *((name, ".1%") for name in ATTRIBUTES),
        *((name, ".2f") for name in READ),
    )
    note = f"The second that ends with latent {MARKS[-1]} of one prompt's video; sky and area against its first second."
    return Table("Long videos", columns, tuple(rows), note)


def sink_table(one: Shown, two: Shown) -> Table:
    """What the sink adds, by seed."""
    reads = {**READ, "shape right": shape_right}

    def added(shown: Shown) -> list[np.ndarray]:
        plain, sunk = (shown.windows[size] for size in WINDOWS)
        return [sunk.each(read)[:, -1] - plain.each(read)[:, -1] for read in reads.values()]

    before, after = added(one), added(two)
    more = [b - a for a, b in zip(before, after, strict=True)]
    found = {"before": before, "after": after, "difference": more}
    rows = [(when, *map(estimate, values)) for when, values in found.items()]
    columns = (("tuning", ""), *((name, ".2f") for name in reads))
    note = f"9 + 3 sink less 12 without a sink, at latent {MARKS[-1]}. The paper: a sink helps only after tuning."
    return Table("What the sink adds", columns, tuple(rows), note)


def variety_table(one: Shown, two: Shown) -> Table:
    rows = (
        ("before", one.variety.difference, one.variety.sky),
        ("after", two.variety.difference, two.variety.sky),
        ("films of the world", one.variety.difference_of_world, one.variety.sky_of_world),
    )
    columns = (("first blocks", ""), ("difference, of 255", ".1f"), ("sky correlation", ".2f"))
    return Table("Different seeds under one prompt", columns, rows, f"The prompt: {scenes_of(0)[0]}.")


def figure(one: Shown, two: Shown) -> Figure:
    reads = {"shape right": shape_right, **READ}
    labelled: Sequence[tuple[str, Endurance]] = [
        (f"{shown.windows[size].name}, {when}", shown.windows[size])
        for size in WINDOWS
        for when, shown in (("before", one), ("after", two))
    ]
    plots = [
        Plot(title, "latents", tuple(curve(label, MARKS, endurance.each(read)) for label, endurance in labelled))
        for title, read in reads.items()
    ]
    return Figure("tuned", tuple(plots))


def shape_right(glance: Glance) -> float:
    return glance.right_A[[*ATTRIBUTES].index("shape")]
