"""How the miniature obeys and continues after a switch (LongLive §3.1).

Every number is read from pixels (`measure.py`). One video is continued in several ways, so that two results differ in
one thing only.

Dimension key: S seeds, A attributes, F pixel frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...evaluation.report import Cell, Figure, Plot, Table, estimate, estimate_curve
from ...session.boundary import Boundary
from ...units import FPS, count_pixel_frames
from ..files import Miniature
from ..grammar import ATTRIBUTES, Scene
from ..world import FADE
from .attributes import ATTRIBUTE_COLUMNS, estimate_shares, stack_attributes
from .measure import correlate_skies, find_right_frames, measure_jump, measure_leap, observe
from .plan import EvaluationPlan, SwitchCase, choose_scenes
from .video_sampler import OnBlock, SampledVideo, VideoSampler

FIRST = 12  # pixel frames after a switch that have a row of their own
LEAP = 3  # pixels; no error of measurement is as large


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """What one switch of one video shows."""

    right_AF: np.ndarray  # by the prompt in force; begins one second before the first new pixel frame
    jump: float  # pixels; the largest of all changes of the prompt
    leap: float  # pixels; likewise
    sky: float  # correlation of the skies before the switch and after the fade

    @classmethod
    def of_pixels(
        cls, pixels_FCHW: Tensor, opening: int, old: Scene, new: Scene, changes: Sequence[int] = (0,)
    ) -> "SwitchResult":
        """Measure a switch behind `opening` latents; the prompt changes at these pixel frames after it."""
        observation = observe(pixels_FCHW[count_pixel_frames(opening) - FPS :])
        frames = [FPS + change for change in changes]
        return cls(
            right_AF=stack_attributes(find_right_frames(observation, [(0, old), (FPS, new)])),
            jump=max(measure_jump(observation, frame) for frame in frames),
            leap=max(measure_leap(observation, frame, FADE + 1) for frame in frames),
            sky=correlate_skies(observation.sky_FHW[FPS - 1], observation.sky_FHW[frames[-1] + FADE]),
        )


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed shows: its first switch in every case, and a video of several switches, each a recache."""

    switches: Mapping[SwitchCase, SwitchResult]
    segments: tuple[np.ndarray, ...]  # right frames [A, F] of each segment, from a second after it begins
    jumps: tuple[float, ...]  # pixels, at each switch

    @classmethod
    def sample(cls, miniature: Miniature, seed: int, plan: EvaluationPlan, on_block: OnBlock) -> "SeedResult":
        """Sample every switch case, then the video of several switches."""
        scenes = choose_scenes(seed, plan.num_segments)
        segment = plan.segment_frames
        with VideoSampler(miniature, on_block) as sampler:
            video, openings = SampledVideo(sampler.start_session(scenes[0], seed, plan.config)), {}
            for frames in sorted({*plan.openings, segment}):
                video = openings[frames] = sampler.continue_video(video, frames - video.session.num_frames)
            cases = {
                case: sampler.switch_video(openings[case.opening], scenes[1], case.boundary, segment).pixels_FCHW
                for case in plan.switch_cases
            }
            video = sample_switches(sampler, openings[segment], scenes[1:], plan)
        return cls.of_pixels(scenes, cases, video.pixels_FCHW, plan)

    @classmethod
    def sample_recaches(cls, miniature: Miniature, seed: int, plan: EvaluationPlan, on_block: OnBlock) -> "SeedResult":
        """Sample the video of several switches only."""
        scenes = choose_scenes(seed, plan.num_segments)
        with VideoSampler(miniature, on_block) as sampler:
            video = sampler.start_video(scenes[0], seed, plan.config, plan.segment_frames)
            video = sample_switches(sampler, video, scenes[1:], plan)
        return cls.of_pixels(scenes, {}, video.pixels_FCHW, plan)

    @classmethod
    def of_pixels(
        cls, scenes: Sequence[Scene], cases: Mapping[SwitchCase, Tensor], video_FCHW: Tensor, plan: EvaluationPlan
    ) -> "SeedResult":
        """Measure the pixels [F, 3, H, W] of each case of the first switch, and of the video of several switches."""
        switches = {
            case: SwitchResult.of_pixels(pixels, case.opening, scenes[0], scenes[1]) for case, pixels in cases.items()
        }
        observation = observe(video_FCHW)
        begins = [count_pixel_frames(plan.segment_frames * i) for i in range(plan.num_segments)]
        right_AF = stack_attributes(find_right_frames(observation, [*zip(begins, scenes, strict=True)]))
        ends = [*begins[1:], count_pixel_frames(plan.segment_frames * plan.num_segments)]
        segments = tuple(right_AF[:, begin + FPS : end] for begin, end in zip(begins, ends, strict=True))
        return cls(switches, segments, tuple(measure_jump(observation, begin) for begin in begins[1:]))


def sample_switches(
    sampler: VideoSampler, video: SampledVideo, scenes: Sequence[Scene], plan: EvaluationPlan
) -> SampledVideo:
    """Continue a video with a segment for each scene; every switch is a recache."""
    for scene in scenes:
        video = sampler.switch_video(video, scene, Boundary.RECACHE, plan.segment_frames)
    return video


def tabulate_adherence(results: Sequence[SeedResult], plan: EvaluationPlan) -> Table:
    spans = {f"first {FIRST} frames": slice(FPS, FPS + FIRST), "after a second": slice(2 * FPS, None)}
    rows: list[tuple[Cell, ...]] = []
    for case in plan.switch_cases:
        right_SAF = np.stack([result.switches[case].right_AF for result in results])
        rows += [
            (case.opening, plan.name_case(case), span, *estimate_shares(right_SAF[..., frames]))
            for span, frames in spans.items()
        ]
    columns = (("latent", "d"), ("memory", ""), ("span", ""), *ATTRIBUTE_COLUMNS)
    note = (
        f"Share of pixel frames that show what the new prompt says. It begins at the given latent and lasts for "
        f"{plan.segment_frames}."
    )
    return Table("Adherence after a switch", columns, tuple(rows), note)


def tabulate_continuity(results: Sequence[SeedResult], plan: EvaluationPlan) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for case in plan.switch_cases:
        jumps = np.array([result.switches[case].jump for result in results])
        sky = estimate([result.switches[case].sky for result in results])
        leaps = np.array([result.switches[case].leap for result in results])
        medians = (estimate(jumps, np.median), estimate(leaps, np.median))
        rows.append((case.opening, plan.name_case(case), *medians, estimate(leaps > LEAP), sky))
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


def tabulate_recaches(results: Sequence[SeedResult], plan: EvaluationPlan) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for segment in range(plan.num_segments):
        right_SAF = np.stack([result.segments[segment] for result in results])
        jumps = [result.jumps[segment - 1] for result in results]
        rows.append((segment + 1, *estimate_shares(right_SAF), estimate(jumps, np.median) if segment else None))
    columns = (("segment", "d"), *ATTRIBUTE_COLUMNS, ("median jump, px", ".1f"))
    note = (
        f"{plan.num_segments} prompts of {plan.segment_frames} latents; every switch a recache, sink kept; "
        f"from a second after it."
    )
    return Table("Five switches", columns, tuple(rows), note)


def plot_switches(results: Sequence[SeedResult], opening: int, plan: EvaluationPlan) -> Figure:
    cases = [case for case in plan.switch_cases if case.opening == opening]
    plots = []
    for i, name in enumerate(ATTRIBUTES):
        rights = {case: np.stack([result.switches[case].right_AF[i] for result in results]) for case in cases}
        curves = [
            estimate_curve(plan.name_case(case), [(frame - FPS) / FPS for frame in range(right_SF.shape[1])], right_SF)
            for case, right_SF in rights.items()
        ]
        plots.append(Plot(f"{name} right", "seconds from the switch", tuple(curves)))
    return Figure(f"switch_at_{opening}", tuple(plots))
