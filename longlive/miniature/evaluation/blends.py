"""How the miniature changes its picture while one prompt blends into another, compared with a recache.

Dimension key: S seeds, A attributes, F pixel frames, B blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...evaluation.report import Cell, Report, Table, estimate
from ...session.boundary import Blend, Boundary, Curve
from ...units import FPS, PIXEL_FRAMES_PER_FRAME
from ..files import Miniature
from ..grammar import Scene
from .attributes import ATTRIBUTE_COLUMNS, estimate_shares
from .measure import measure_way
from .plan import UNBOUNDED, check_seeds, choose_scenes
from .switches import SwitchResult
from .video_sampler import OnBlock, VideoSampler

OPENING = 24  # latents before the switch: the window has rolled
SEGMENT = 15  # latents after it
BLOCKS = 3  # of a blend
BLOCK_FRAMES = UNBOUNDED.block * PIXEL_FRAMES_PER_FRAME  # pixel frames
WAYS: Mapping[str, Blend | None] = {
    "recache": None,
    f"blend, {BLOCKS} blocks": Blend(BLOCKS),
    f"blend, {BLOCKS} blocks, spherical": Blend(BLOCKS, Curve.SPHERICAL),
}


@dataclass(frozen=True, slots=True)
class BlendResult:
    """What one switch of one video shows, made in one way."""

    switch: SwitchResult  # to a scene with other colour, shape and motion
    colour_B: np.ndarray  # how far the colour has come before and after each block, if the prompt changes it alone
    settled: int  # pixel frame of the switch's rows from which on the prompt has been the new one for a second

    @property
    def largest_step(self) -> float:
        """The largest part of the way of the colour that is made in one block."""
        return np.diff(self.colour_B).max()

    @property
    def rises(self) -> bool:
        """Whether the colour moves towards the new one in every block of a blend."""
        return bool((np.diff(self.colour_B[: BLOCKS + 1]) > 0).all())


def sample_blends(miniature: Miniature, seed: int, on_block: OnBlock = lambda: None) -> dict[str, BlendResult]:
    """Sample one video of a seed and continue it in every way."""
    old, new = choose_scenes(seed, 2)
    results = {}
    with VideoSampler(miniature, on_block) as sampler:
        video = sampler.start_video(old, seed, UNBOUNDED, OPENING)
        for name, blend in WAYS.items():

            def switch(scene: Scene, blend: Blend | None = blend) -> Tensor:
                return sampler.switch_video(video, scene, Boundary.RECACHE, SEGMENT, blend).pixels_FCHW

            changes = [BLOCK_FRAMES * number for number in range(blend.blocks if blend else 1)]
            results[name] = BlendResult(
                SwitchResult.of_pixels(switch(new), OPENING, old, new, changes),
                follow_colour(switch(replace(old, colour=new.colour))),
                changes[-1] + 2 * FPS,
            )
    return results


def follow_colour(pixels_FCHW: Tensor) -> np.ndarray:
    """Measure how far the colour has come before the last segment, 0, and after each of its blocks, up to 1."""
    begin = len(pixels_FCHW) - SEGMENT * PIXEL_FRAMES_PER_FRAME
    return measure_way(pixels_FCHW, range(begin, len(pixels_FCHW) + 1, BLOCK_FRAMES)).double().numpy()


def report_blends(miniature: Miniature, seeds: int) -> Report:
    """Sample and measure, 5 seconds per seed on one core. Raises ConfigError for fewer than two seeds."""
    check_seeds(seeds)
    blocks = (OPENING + 2 * SEGMENT * len(WAYS)) // UNBOUNDED.block
    with tqdm(total=seeds * blocks, unit="block", disable=None) as bar:
        results = [sample_blends(miniature, seed, bar.update) for seed in range(seeds)]
    return Report(f"Recache and blend over {seeds} seeds", (tabulate_blends(results), tabulate_colour(results)), ())


def tabulate_blends(results: Sequence[Mapping[str, BlendResult]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in WAYS:
        found = [result[name] for result in results]
        right_SAF = np.stack([each.switch.right_AF[:, each.settled :] for each in found])
        leap = estimate([each.switch.leap for each in found], np.median)
        sky = estimate([each.switch.sky for each in found])
        rows.append((name, *estimate_shares(right_SAF), leap, sky))
    columns = (("switch", ""), *ATTRIBUTE_COLUMNS, ("median leap, px", ".1f"), ("sky correlation", ".2f"))
    note = (
        f"Behind {OPENING} latents. Shares of pixel frames that show the new prompt, from one second after its last "
        f"change on. A leap is measured at every change, and the largest counts."
    )
    return Table("Recache and blend", columns, tuple(rows), note)


def tabulate_colour(results: Sequence[Mapping[str, BlendResult]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in WAYS:
        found = [result[name] for result in results]
        ways_SB = np.stack([each.colour_B[1 : BLOCKS + 1] for each in found])
        step, rises = ([getattr(each, trait) for each in found] for trait in ("largest_step", "rises"))
        rows.append((name, *map(estimate, ways_SB.T), estimate(step), estimate(rises)))
    numbered = ((f"after block {number}", ".2f") for number in range(1, BLOCKS + 1))
    columns = (("switch", ""), *numbered, ("largest step", ".2f"), ("rises in each", ".0%"))
    note = (
        "The prompt changes the colour alone. How far the mean colour of the picture has come: 0 before the switch, "
        "1 at the end of the segment; the largest step is that of one block."
    )
    return Table("Colour over a blend", columns, tuple(rows), note)
