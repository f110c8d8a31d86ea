"""The miniature before and after streaming long tuning: what it obeys and keeps (LongLive §3.2, §3.3).

Both models sample the same videos from the same noise, so differences are paired by seed.

Dimension key: S seeds, A attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ...evaluation.report import Cell, Estimate, Figure, Plot, Report, Table, estimate, estimate_curve
from ..files import Miniature
from .attributes import ATTRIBUTE_COLUMNS, estimate_shares
from .plan import EvaluationPlan, check_seeds
from .seed_variety import SeedVariety, tabulate_variety
from .switches import SeedResult
from .video_sampler import OnBlock
from .windows import READS, WindowResult, read_shape

WINDOWS = ((12, 0), (12, 3))  # latents (window, sink): without the sink, and as released


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What one model shows."""

    seeds: tuple[SeedResult, ...]
    windows: Mapping[tuple[int, int], WindowResult]
    variety: SeedVariety

    @classmethod
    def sample(cls, miniature: Miniature, seeds: int, plan: EvaluationPlan, on_block: OnBlock) -> "ModelResult":
        results = tuple(SeedResult.sample_recaches(miniature, seed, plan, on_block) for seed in range(seeds))
        windows = {size: WindowResult.sample(miniature, size, seeds, plan, on_block) for size in WINDOWS}
        return cls(results, windows, SeedVariety.sample(miniature, seeds, plan, on_block))

    @property
    def right_SA(self) -> np.ndarray:
        """The share of right frames over the segments after a switch."""
        return np.array(
            [np.mean([right_AF.mean(1) for right_AF in result.segments[1:]], axis=0) for result in self.seeds]
        )


def report_comparison(before: Miniature, after: Miniature, seeds: int, plan: EvaluationPlan | None = None) -> Report:
    """Sample and measure both, half a minute per seed on one core. Raises ConfigError for fewer than two seeds."""
    plan = plan or EvaluationPlan()
    check_seeds(seeds)
    frames = plan.segment_frames * plan.num_segments + plan.marks[-1] * len(WINDOWS) + plan.config.block
    with tqdm(total=2 * seeds * frames // plan.config.block, unit="block", disable=None) as bar:
        one, two = (ModelResult.sample(miniature, seeds, plan, bar.update) for miniature in (before, after))
    return Report(
        f"The miniature before and after streaming long tuning, over {seeds} seeds",
        (
            compare_adherence(one, two, plan),
            compare_long_videos(one, two, plan),
            compare_sink(one, two, plan),
            tabulate_variety({"before": one.variety, "after": two.variety}),
        ),
        (plot_comparison(one, two, plan),),
    )


def compare_shares(before: np.ndarray, after: np.ndarray) -> dict[str, list[Estimate]]:
    """Estimate shares [S, A] before, after, and their difference by seed."""
    return {
        "before": estimate_shares(before[..., None]),
        "after": estimate_shares(after[..., None]),
        "difference": [estimate(column) for column in (after - before).T],
    }


def compare_adherence(one: ModelResult, two: ModelResult, plan: EvaluationPlan) -> Table:
    first_SA = [result.windows[plan.released_window].collect_right(0) for result in (one, two)]
    spans = {
        f"the first {plan.marks[0]} latents": compare_shares(*first_SA),
        "from a second after each switch": compare_shares(one.right_SA, two.right_SA),
    }
    rows: list[tuple[Cell, ...]] = [
        (span, when, *shares) for span, values in spans.items() for when, shares in values.items()
    ]
    columns = (("span", ""), ("tuning", ""), *ATTRIBUTE_COLUMNS)
    note = f"{plan.num_segments} prompts of {plan.segment_frames} latents, sink kept. Differences are paired by seed."
    return Table("Adherence", columns, tuple(rows), note)


def compare_long_videos(one: ModelResult, two: ModelResult, plan: EvaluationPlan) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for size in WINDOWS:
        results = (one.windows[size], two.windows[size])
        rights = compare_shares(*(result.collect_right(-1) for result in results))
        last = [np.stack([result.collect(read)[:, -1] for read in READS.values()], axis=1) for result in results]
        facts = {"before": last[0], "after": last[1], "difference": last[1] - last[0]}
        rows += [
            (results[0].name, when, *rights[when], *(estimate(column) for column in facts[when].T)) for when in rights
        ]
    columns = (("window", ""), ("tuning", ""), *ATTRIBUTE_COLUMNS, *((name, ".2f") for name in READS))
    note = (
        f"The second that ends with latent {plan.marks[-1]} of one prompt's video; "
        f"sky and area against its first second."
    )
    return Table("Long videos", columns, tuple(rows), note)


def compare_sink(one: ModelResult, two: ModelResult, plan: EvaluationPlan) -> Table:
    """Tabulate what the sink adds, by seed."""
    reads = {**READS, "shape right": read_shape}

    def subtract(result: ModelResult) -> list[np.ndarray]:
        without, with_sink = (result.windows[size] for size in WINDOWS)
        return [with_sink.collect(read)[:, -1] - without.collect(read)[:, -1] for read in reads.values()]

    before, after = subtract(one), subtract(two)
    difference = [b - a for a, b in zip(before, after, strict=True)]
    added = {"before": before, "after": after, "difference": difference}
    rows = [(when, *map(estimate, values)) for when, values in added.items()]
    columns = (("tuning", ""), *((name, ".2f") for name in reads))
    note = f"9 + 3 sink less 12 without a sink, at latent {plan.marks[-1]}. The paper: a sink helps only after tuning."
    return Table("What the sink adds", columns, tuple(rows), note)


def plot_comparison(one: ModelResult, two: ModelResult, plan: EvaluationPlan) -> Figure:
    reads = {"shape right": read_shape, **READS}
    labelled = [
        (f"{result.windows[size].name}, {when}", result.windows[size])
        for size in WINDOWS
        for when, result in (("before", one), ("after", two))
    ]
    plots = [
        Plot(
            title,
            "latents",
            tuple(estimate_curve(label, plan.marks, window.collect(read)) for label, window in labelled),
        )
        for title, read in reads.items()
    ]
    return Figure("tuned", tuple(plots))
