"""The report of the miniature: what it shows of LongLive's method, sampled from prompts alone."""

from tqdm import tqdm

from ...evaluation.report import Report
from ..files import Miniature
from .plan import EvaluationPlan, check_seeds
from .seed_variety import SeedVariety, tabulate_variety
from .switches import SeedResult, plot_switches, tabulate_adherence, tabulate_continuity, tabulate_recaches
from .targets import tabulate_targets
from .windows import WindowResult, plot_windows, tabulate_windows


def report_miniature(miniature: Miniature, seeds: int, plan: EvaluationPlan | None = None) -> Report:
    """Sample and measure all of it, half a minute per seed on one core. Raises ConfigError for fewer than two seeds."""
    plan = plan or EvaluationPlan()
    check_seeds(seeds)
    with tqdm(total=seeds * count_blocks(plan), unit="block", disable=None) as bar:
        results = [SeedResult.sample(miniature, seed, plan, bar.update) for seed in range(seeds)]
        windows = {size: WindowResult.sample(miniature, size, seeds, plan, bar.update) for size in plan.windows}
        variety = SeedVariety.sample(miniature, seeds, plan, bar.update)
    return Report(
        f"The miniature over {seeds} seeds, {plan.config.positions} positions",
        (
            tabulate_targets(results, windows[plan.released_window], variety, plan),
            tabulate_adherence(results, plan),
            tabulate_continuity(results, plan),
            tabulate_recaches(results, plan),
            tabulate_windows([*windows.values()], miniature, plan),
            tabulate_variety({"sampled": variety}),
        ),
        (
            *(plot_switches(results, opening, plan) for opening in plan.openings),
            plot_windows([*windows.values()], plan),
        ),
    )


def count_blocks(plan: EvaluationPlan) -> int:
    """Count the blocks that are sampled for one seed."""
    segments = len(plan.switch_cases) + plan.num_segments - 1
    frames = max(*plan.openings, plan.segment_frames) + plan.segment_frames * segments
    return (frames + plan.marks[-1] * len(plan.windows)) // plan.config.block + 1
