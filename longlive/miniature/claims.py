"""What the miniature shows of LongLive's claims, from prompts alone: switches (§3.1), the short window (§3.3).

Every number is read from the pixels of videos sampled here (`measure.py`). A video is begun once and goes on in
several ways, so what is compared differs in one thing and in nothing else.

Dimension key: S seeds, A attributes, T moments, F pixel frames.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..config import FPS, Positions, RolloutConfig, pixel_frames
from ..errors import ConfigError
from ..report import Cell, Estimate, Figure, Plot, Report, Table, curve, estimate
from ..sampler import memory_bytes
from ..timeline import Boundary
from .files import Miniature
from .films import numbered, random_scene, random_sky
from .grammar import ATTRIBUTES, Scene
from .measure import jump, leap, observed, right, sky_correlation
from .stage import Stage, Take
from .world import FADE, SIZE, Film, render

CONFIG = RolloutConfig(positions=Positions.UNBOUNDED)
OPENINGS = (12, 24)  # latents before a switch: the window just full, and rolled, so that the sink may be kept
SEGMENT = 15  # latents of a story's segment, and those that follow a switch
SEGMENTS = 6  # of a story
WINDOWS = ((12, 0), (12, 3), (21, 0))  # latents (window, sink); training draws each of them
MARKS = (6, 30, 60, 120, 180, 240)  # latents of a long video at which its latest second is looked at
READ_AT = (60, 240)  # of these, the table's
STEADY = 10  # blocks, after which every window has rolled and a block is timed
FIRST = 12  # pixel frames after a switch that are looked at by themselves
LEAP = 3  # pixels farther than anything moves: no error of measurement

Watched = Callable[[], object]
"""Called after every block."""


def report(miniature: Miniature, seeds: int) -> Report:
    """Sample and measure everything; half a minute a seed on one core. Raises ConfigError for fewer than two seeds."""
    if seeds < 2:
        raise ConfigError(f"seeds is {seeds}; intervals need at least 2 videos, the published tables have 32")
    frames = max(*OPENINGS, SEGMENT) + SEGMENT * (len(ways()) + SEGMENTS - 1) + MARKS[-1] * len(WINDOWS) + CONFIG.block
    with tqdm(total=seeds * frames // CONFIG.block, unit="block", disable=None) as bar:
        stories = [Story.told(miniature, seed, bar.update) for seed in range(seeds)]
        windows = {size: Endurance.of(miniature, size, seeds, bar.update) for size in WINDOWS}
        variety = Variety.of(miniature, seeds, bar.update)
    released = windows[CONFIG.window, CONFIG.sink]
    return Report(
        f"The miniature over {seeds} seeds, {CONFIG.positions} positions",
        (
            targets(stories, released, variety),
            adherence_table(stories),
            continuity_table(stories),
            story_table(stories),
            windows_table([*windows.values()], miniature),
            variety.table(),
        ),
        (*(switch_figure(stories, opening) for opening in OPENINGS), windows_figure([*windows.values()])),
    )


Way = tuple[int, Boundary]
"""Latents before a switch, and what becomes of the memory."""


def ways() -> list[Way]:
    """Those that differ: while a video fits the window, every recache rewrites the sink."""
    return [
        (opening, boundary)
        for opening in OPENINGS
        for boundary in (Boundary.DISCARD, Boundary.KEEP, Boundary.RECACHE, Boundary.RENEW)
        if boundary is not Boundary.RENEW or opening > CONFIG.window
    ]


def named(way: Way) -> str:
    opening, boundary = way
    sinks = {Boundary.RECACHE: "sink kept", Boundary.RENEW: "sink renewed"}
    return f"recache, {sinks[boundary]}" if boundary in sinks and opening > CONFIG.window else boundary.value


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch of one video."""

    right_AF: np.ndarray  # from a second before the first new pixel frame on, by the prompt that rules
    jump: float  # pixels
    leap: float  # pixels
    sky: float  # correlation of the skies before the switch and after the fade

    @classmethod
    def of(cls, pixels_FCHW: Tensor, opening: int, old: Scene, new: Scene) -> "Switch":
        seen = observed(pixels_FCHW[pixel_frames(opening) - FPS :])
        return cls(
            right_AF=stacked(right(seen, [(0, old), (FPS, new)])),
            jump=jump(seen, FPS),
            leap=leap(seen, FPS, FADE + 1),
            sky=sky_correlation(seen.sky_FHW[FPS - 1], seen.sky_FHW[FPS + FADE]),
        )


@dataclass(frozen=True, slots=True)
class Story:
    """What one seed showed: its first switch made in every way, and five switches in a row, each a recache."""

    switches: dict[Way, Switch]
    right_AF: np.ndarray
    jumps: tuple[float, ...]  # pixels

    @classmethod
    def told(cls, miniature: Miniature, seed: int, done: Watched) -> "Story":
        scenes = scenes_of(seed)
        with Stage(miniature, done) as stage:
            take, begun = Take(stage.begun(scenes[0], seed, CONFIG)), {}
            for frames in sorted({*OPENINGS, SEGMENT}):
                take = begun[frames] = stage.longer(take, frames - take.session.num_frames)
            switched = {way: stage.switched(begun[way[0]], scenes[1], way[1], SEGMENT) for way in ways()}
            take = begun[SEGMENT]
            for scene in scenes[1:]:
                take = stage.switched(take, scene, Boundary.RECACHE, SEGMENT)
        return cls.of(scenes, {way: ended.pixels_FCHW for way, ended in switched.items()}, take.pixels_FCHW)

    @classmethod
    def of(cls, scenes: Sequence[Scene], switched: Mapping[Way, Tensor], story_FCHW: Tensor) -> "Story":
        """Look at the videos [F, 3, H, W]: each way of the first switch, and the whole story."""
        switches = {way: Switch.of(pixels, way[0], scenes[0], scenes[1]) for way, pixels in switched.items()}
        seen = observed(story_FCHW)
        begins = [pixel_frames(SEGMENT * i) for i in range(SEGMENTS)]
        is_right = right(seen, [*zip(begins, scenes, strict=True)])
        return cls(switches, stacked(is_right), tuple(jump(seen, begin) for begin in begins[1:]))

    def after_a_second(self, segment: int) -> np.ndarray:
        """Which frames of a segment, counted from 0, are right from its second second on [A, F]."""
        return self.right_AF[:, pixel_frames(SEGMENT * segment) + FPS : pixel_frames(SEGMENT * (segment + 1))]


def scenes_of(seed: int) -> list[Scene]:
    """The prompts of a seed's story; of two neighbours only the background may be the same."""
    draw = numbered("claims", seed)
    scenes = [random_scene(draw)]
    while len(scenes) < SEGMENTS:
        scenes.append(changed(scenes[-1], draw))
    return scenes


def changed(scene: Scene, draw: random.Random) -> Scene:
    while True:
        other = random_scene(draw, anywhere=False)
        if all(getattr(scene, name) is not getattr(other, name) for name in ("colour", "shape", "motion")):
            return other


def adherence_table(stories: Sequence[Story]) -> Table:
    spans = {f"first {FIRST} frames": slice(FPS, FPS + FIRST), "after a second": slice(2 * FPS, None)}
    rows: list[tuple[Cell, ...]] = []
    for way in ways():
        right_SAF = np.stack([story.switches[way].right_AF for story in stories])
        rows += [(way[0], named(way), span, *shares(right_SAF[..., frames])) for span, frames in spans.items()]
    columns = (("latent", "d"), ("memory", ""), ("span", ""), *((name, ".1%") for name in ATTRIBUTES))
    note = f"Share of pixel frames right by the new prompt, which rules {SEGMENT} latents from the given one on."
    return Table("Adherence after a switch", columns, tuple(rows), note)


def continuity_table(stories: Sequence[Story]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for way in ways():
        jumps = np.array([story.switches[way].jump for story in stories])
        sky = estimate([story.switches[way].sky for story in stories])
        leaps = np.array([story.switches[way].leap for story in stories])
        medians = (estimate(jumps, np.median), estimate(leaps, np.median))
        rows.append((way[0], named(way), *medians, estimate(leaps > LEAP), sky))
    columns = (
        ("latent", "d"),
        ("memory", ""),
        ("median jump, px", ".1f"),
        ("median leap, px", ".1f"),
        (f"leaps over {LEAP} px", ".0%"),
        ("sky correlation", ".2f"),
    )
    note = (
        f"A jump is the step of the thing's middle from the last old to the first new pixel frame; what moves, moves "
        f"1 px. The decoder spreads a cut over some frames: a leap is how much farther the thing is {FADE + 1} frames "
        f"later than it can have moved. Skies are compared over those frames too."
    )
    return Table("Continuity at a switch", columns, tuple(rows), note)


def story_table(stories: Sequence[Story]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for segment in range(SEGMENTS):
        right_SAF = np.stack([story.after_a_second(segment) for story in stories])
        jumps = [story.jumps[segment - 1] for story in stories]
        rows.append((segment + 1, *shares(right_SAF), estimate(jumps, np.median) if segment else None))
    columns = (("segment", "d"), *((name, ".1%") for name in ATTRIBUTES), ("median jump, px", ".1f"))
    note = f"{SEGMENTS} prompts of {SEGMENT} latents; every switch a recache, sink kept; from a second after it."
    return Table("Five switches", columns, tuple(rows), note)


def switch_figure(stories: Sequence[Story], opening: int) -> Figure:
    mine = [way for way in ways() if way[0] == opening]
    plots = []
    for i, name in enumerate(ATTRIBUTES):
        rights = {way: np.stack([story.switches[way].right_AF[i] for story in stories]) for way in mine}
        curves = [
            curve(named(way), [(frame - FPS) / FPS for frame in range(right_SF.shape[1])], right_SF)
            for way, right_SF in rights.items()
        ]
        plots.append(Plot(f"{name} right", "seconds from the switch", tuple(curves)))
    return Figure(f"switch_at_{opening}", tuple(plots))


@dataclass(frozen=True, slots=True)
class Glance:
    """One second of a long video."""

    right_A: np.ndarray  # share of its pixel frames
    likeness: float  # of the thing to its shape
    sky: float  # correlation with the first second's
    area: float  # of the thing, relative to the first second's


@dataclass(frozen=True, slots=True)
class Endurance:
    """Long videos of one prompt each, in one window."""

    config: RolloutConfig
    seconds: float  # of a block, median
    glances: tuple[tuple[Glance, ...], ...]  # of every seed, at `MARKS`

    @classmethod
    def of(cls, miniature: Miniature, size: tuple[int, int], seeds: int, done: Watched) -> "Endurance":
        config = replace(CONFIG, window=size[0], sink=size[1])
        glances, took = [], []
        for seed in range(seeds):
            scene = scenes_of(seed)[0]
            with Stage(miniature, done) as stage:
                video, ends = stage.begun(scene, seed, config), [time.perf_counter()]
                for longer in stage.extend(video, MARKS[-1] // config.block):
                    video = longer
                    ends.append(time.perf_counter())
                took += np.diff(ends)[STEADY:].tolist()
                glances.append(glances_at([stage.latest_second(video, mark) for mark in MARKS], scene))
        return cls(config, statistics.median(took), tuple(glances))

    @property
    def name(self) -> str:
        recent, sink = self.config.recent, self.config.sink
        return f"{recent} + {sink} sink" if sink else f"{recent}, no sink"

    def each(self, read: Callable[[Glance], float]) -> np.ndarray:
        """A number of every glance [S, T]."""
        return np.array([[read(glance) for glance in glances] for glances in self.glances])


def glances_at(seconds: Sequence[Tensor], scene: Scene) -> tuple[Glance, ...]:
    """What seconds of pixels [F, 3, H, W] of one video show, the first being its first."""
    seen = [observed(pixels) for pixels in seconds]
    first_sky, first_area = seen[0].sky_FHW[-1], seen[0].area_F.mean().clamp_min(1)
    return tuple(
        Glance(
            right_A=stacked(right(second, [(0, scene)])).mean(1),
            likeness=second.likeness_F.mean().item(),
            sky=sky_correlation(first_sky, second.sky_FHW[-1]),
            area=(second.area_F.mean() / first_area).item(),
        )
        for second in seen
    )


def windows_table(windows: Sequence[Endurance], miniature: Miniature) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for window in windows:
        kibibytes = memory_bytes(miniature.model, window.config, SIZE, SIZE) // 1024
        for mark in READ_AT:
            at = MARKS.index(mark)
            right_SA = np.stack([glances[at].right_A for glances in window.glances])
            facts = [
                estimate(window.each(read)[:, at])
                for read in (lambda glance: glance.likeness, lambda glance: glance.sky, lambda glance: glance.area)
            ]
            rows.append((window.name, mark, *shares(right_SA[..., None]), *facts, 1000 * window.seconds, kibibytes))
    columns = (
        ("window", ""),
        ("latents", "d"),
        *((name, ".1%") for name in ATTRIBUTES),
        ("likeness", ".2f"),
        ("sky correlation", ".2f"),
        ("area", ".2f"),
        ("ms a block", ".0f"),
        ("KiB of keys and values", "d"),
    )
    note = (
        f"The latest second of one prompt's video; sky and area against its first second. Likeness is intersection "
        f"over union with the shape. The miniature was trained in each of these windows. Time: clean pass and "
        f"{len(CONFIG.steps)} steps; threads: {torch.get_num_threads()}."
    )
    return Table("Windows", columns, tuple(rows), note)


def windows_figure(windows: Sequence[Endurance]) -> Figure:
    shape = [*ATTRIBUTES].index("shape")
    kinds: dict[str, Callable[[Glance], float]] = {
        "sky correlation with the first second": lambda glance: glance.sky,
        "area relative to the first second": lambda glance: glance.area,
        "likeness to its shape": lambda glance: glance.likeness,
        "shape right": lambda glance: glance.right_A[shape],
    }
    plots = [
        Plot(title, "latents", tuple(curve(window.name, MARKS, window.each(read)) for window in windows))
        for title, read in kinds.items()
    ]
    return Figure("windows", tuple(plots))


@dataclass(frozen=True, slots=True)
class Variety:
    """How far first blocks of one prompt and neighbouring seeds lie apart, beside films of the world itself."""

    difference: Estimate  # mean of absolute pixel differences, 0..255
    sky: Estimate  # correlation
    difference_of_world: Estimate
    sky_of_world: Estimate

    @classmethod
    def of(cls, miniature: Miniature, seeds: int, done: Watched) -> "Variety":
        scene = scenes_of(0)[0]
        sampled = []
        with Stage(miniature, done) as stage:
            for seed in range(seeds):
                take = stage.longer(Take(stage.begun(scene, seed, CONFIG)), CONFIG.block)
                sampled.append(take.pixels_FCHW)
        skies = [random_sky(numbered("variety", seed)) for seed in range(seeds)]
        rendered, _ = render([Film(((0, scene),), sky) for sky in skies], pixel_frames(CONFIG.block))
        return cls(*apart(sampled), *apart([*rendered]))

    def table(self) -> Table:
        rows = (
            ("sampled", self.difference, self.sky),
            ("films of the world", self.difference_of_world, self.sky_of_world),
        )
        columns = (("first blocks", ""), ("difference, of 255", ".1f"), ("sky correlation", ".2f"))
        return Table("Different seeds under one prompt", columns, rows, f"The prompt: {scenes_of(0)[0]}.")


def apart(videos_FCHW: Sequence[Tensor]) -> tuple[Estimate, Estimate]:
    """Absolute pixel difference, 0..255, and correlation of the skies of each video and the next."""
    others = [*videos_FCHW[1:], videos_FCHW[0]]
    pairs = [*zip(videos_FCHW, others, strict=True)]
    skies = [observed(video_FCHW[:1]).sky_FHW[0] for video_FCHW in videos_FCHW]
    return (
        estimate([(one - other).abs().mean().item() * 255 / 2 for one, other in pairs]),
        estimate([sky_correlation(one, other) for one, other in zip(skies, [*skies[1:], skies[0]], strict=True)]),
    )


AT_LEAST = {"colour": 0.95, "shape": 0.85, "motion": 0.95, "background": 0.95}
DECAY = 0.03  # that an attribute may lose, over five switches or 240 latents
FARTHEST = 2.0  # pixels, of a median jump
SIZES = (0.95, 1.05)  # of the thing after 240 latents
VARIETY = 0.5  # of the difference between films of the world


def targets(stories: Sequence[Story], released: Endurance, variety: Variety) -> Table:
    """What the miniature was made for, beside what was found."""
    rows: list[tuple[Cell, ...]] = []

    def row(what: str, wanted: str, found: Estimate, spec: str, is_met: bool) -> None:
        rows.append((what, wanted, format(found, spec), "yes" if is_met else "no"))

    story_SGA = np.array([[story.after_a_second(i).mean(1) for i in range(1, SEGMENTS)] for story in stories])
    for i, (name, least) in enumerate(AT_LEAST.items()):
        share = estimate(story_SGA[:, :, i])
        row(f"{name}, from a second after a switch", f"at least {least:.0%}", share, ".1%", share.value >= least)
        lost = estimate(story_SGA[:, 0, i] - story_SGA[:, -1, i])
        row(
            f"{name}, lost from the first to the fifth switch", f"at most {DECAY:.0%}", lost, ".1%", lost.value <= DECAY
        )
    jumps = estimate([story.jumps for story in stories], np.median)
    row("median jump at a switch, px", f"at most {FARTHEST:g}", jumps, ".1f", jumps.value <= FARTHEST)
    for i, name in enumerate(AT_LEAST):
        lost = estimate([glances[0].right_A[i] - glances[-1].right_A[i] for glances in released.glances])
        row(f"{name}, lost over {MARKS[-1]} latents", f"at most {DECAY:.0%}", lost, ".1%", lost.value <= DECAY)
    area = estimate([glances[-1].area for glances in released.glances])
    low, high = SIZES
    row(f"area after {MARKS[-1]} latents", f"{low} to {high}", area, ".3f", low <= area.value <= high)
    least = VARIETY * variety.difference_of_world.value
    found = variety.difference
    row("difference between seeds, of 255", f"at least {least:.1f}", found, ".1f", found.value >= least)
    columns = (("target", ""), ("wanted", ""), ("found", ""), ("met", ""))
    note = (
        f"Numbers are means or medians over seeds, in brackets their 95 % intervals (bootstrap over seeds); a target "
        f"is met by the number itself. Between seeds, {VARIETY:.0%} of what films of the world differ by."
    )
    return Table("Targets", columns, tuple(rows), note)


def stacked(is_right: dict[str, Tensor]) -> np.ndarray:
    """Rows of 0 and 1 [A, F], in the order of `ATTRIBUTES`."""
    return torch.stack([is_right[name] for name in ATTRIBUTES]).double().numpy()


def shares(right_SAF: np.ndarray) -> list[Estimate]:
    """The share of right frames, by attribute."""
    return [estimate(right_SF.mean(1)) for right_SF in right_SAF.transpose(1, 0, 2)]
