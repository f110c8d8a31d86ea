"""The miniature as a rolling video beside the block-wise one: how long it holds, and what a switch does.

Both make videos of the same prompts and seeds. A rolling video has its own noise levels, so its pictures are others.

Dimension key: S seeds, A attributes, F pixel frames, B blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ...config import RolloutConfig
from ...evaluation.report import Cell, Report, Table, estimate
from ...units import FPS, PIXEL_FRAMES_PER_FRAME
from ..files import Miniature
from .attributes import ATTRIBUTE_COLUMNS, estimate_shares
from .blends import BLOCK_FRAMES
from .plan import EvaluationPlan, SwitchCase, check_seeds, choose_scenes
from .switches import SwitchResult
from .video_sampler import OnBlock, SampledVideo, VideoSampler
from .windows import READS, WindowResult

MOST = 0.5  # share of a latent's pixel frames, above which it shows the new prompt


@dataclass(frozen=True, slots=True)
class KindResult:
    """What one kind of rollout shows."""

    plan: EvaluationPlan
    long: WindowResult
    switches: Mapping[SwitchCase, tuple[SwitchResult, ...]]  # by seed

    @classmethod
    def sample(cls, miniature: Miniature, seeds: int, plan: EvaluationPlan, on_block: OnBlock) -> "KindResult":
        by_seed = [sample_switch_cases(miniature, seed, plan, on_block) for seed in range(seeds)]
        switches = {case: tuple(found[case] for found in by_seed) for case in plan.switch_cases}
        return cls(plan, WindowResult.sample(miniature, plan.released_window, seeds, plan, on_block), switches)


def report_rolling(blockwise: Miniature, rolling: Miniature, seeds: int, plan: EvaluationPlan | None = None) -> Report:
    """Sample and measure both kinds, a minute per seed on one core. Raises ConfigError for fewer than two seeds."""
    plan = plan or EvaluationPlan()
    check_seeds(seeds)
    kinds = ((blockwise, plan), (rolling, replace(plan, config=RolloutConfig.roll())))
    total = sum(seeds * count_kind_blocks(each) for _, each in kinds)
    with tqdm(total=total, unit="block", disable=None) as bar:
        results = [KindResult.sample(miniature, seeds, each, bar.update) for miniature, each in kinds]
    return Report(
        f"The miniature block-wise and rolling, over {seeds} seeds",
        (tabulate_long_videos(results), tabulate_switches(results)),
        (),
    )


def count_kind_blocks(plan: EvaluationPlan) -> int:
    """Count the blocks that are sampled for one seed."""
    frames = max(plan.openings) + plan.segment_frames * len(plan.switch_cases) + plan.marks[-1]
    return frames // plan.config.block


def sample_switch_cases(
    miniature: Miniature, seed: int, plan: EvaluationPlan, on_block: OnBlock
) -> dict[SwitchCase, SwitchResult]:
    """Sample one video of a seed and continue it in every case."""
    old, new = choose_scenes(seed, 2)
    with VideoSampler(miniature, on_block) as sampler:
        video, openings = SampledVideo(sampler.start_session(old, seed, plan.config)), {}
        for frames in sorted(plan.openings):
            video = openings[frames] = sampler.continue_video(video, frames - video.session.num_frames)
        return {
            case: SwitchResult.of_pixels(
                sampler.switch_video(openings[case.opening], new, case.boundary, plan.segment_frames).pixels_FCHW,
                case.opening,
                old,
                new,
            )
            for case in plan.switch_cases
        }


def count_delay(right_AF: np.ndarray) -> int:
    """Count the blocks before the first one whose last latent shows the new prompt, in all that it says.

    The rows of a `SwitchResult`; if no block does, the number of all blocks after the switch.
    """
    right_BF = right_AF[:, FPS:].min(0).reshape(-1, BLOCK_FRAMES)
    shows_B = right_BF[:, -PIXEL_FRAMES_PER_FRAME:].mean(1) > MOST
    return int(shows_B.argmax()) if shows_B.any() else len(shows_B)


def tabulate_long_videos(results: Sequence[KindResult]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for mark in result.plan.table_marks:
            at = result.plan.marks.index(mark)
            shares = estimate_shares(result.long.collect_right(at)[..., None])
            facts = [estimate(result.long.collect(read)[:, at]) for read in READS.values()]
            rows.append((name_kind(result), mark, *shares, *facts, 1000 * result.long.seconds))
    columns = (("kind", ""), ("latents", "d"), *ATTRIBUTE_COLUMNS, *((name, ".2f") for name in READS))
    note = "The latest second of one prompt's video; sky and area against its first second."
    return Table("Long videos", (*columns, ("ms a block", ".0f")), tuple(rows), note)


def tabulate_switches(results: Sequence[KindResult]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for case, found in result.switches.items():
            shares = estimate_shares(np.stack([each.right_AF[:, 2 * FPS :] for each in found]))
            leap, delay = (
                estimate(values, np.median)
                for values in ([each.leap for each in found], [count_delay(each.right_AF) for each in found])
            )
            sky = estimate([each.sky for each in found])
            rows.append((name_kind(result), case.opening, result.plan.name_case(case), *shares, leap, delay, sky))
    columns = (("kind", ""), ("latent", "d"), ("memory", ""), *ATTRIBUTE_COLUMNS)
    note = (
        "Shares of pixel frames that show the new prompt, from one second after the switch on. Delay: blocks before "
        "the first one that ends with all of the new prompt. Leap and delay are medians."
    )
    more = (("leap, px", ".1f"), ("delay, blocks", ".1f"), ("sky correlation", ".2f"))
    return Table("What a switch does", (*columns, *more), tuple(rows), note)


def name_kind(result: KindResult) -> str:
    return result.plan.config.kind.value
