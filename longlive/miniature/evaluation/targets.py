"""What the miniature was made for, beside what it reaches.

Dimension key: S seeds, G segments, A attributes.
"""

from collections.abc import Sequence

import numpy as np

from ...evaluation.report import Cell, Estimate, Table, estimate
from .plan import EvaluationPlan
from .seed_variety import SeedVariety
from .switches import SeedResult
from .windows import WindowResult

LEAST_SHARES = {"colour": 0.95, "shape": 0.85, "motion": 0.95, "background": 0.95}
MAX_LOSS = 0.03  # of an attribute, over all switches or the longest video
MAX_JUMP = 2.0  # pixels, median
AREAS = (0.95, 1.05)  # of the thing at the end of the longest video
LEAST_VARIETY = 0.5  # of the difference between clips of the world


def tabulate_targets(
    results: Sequence[SeedResult], released: WindowResult, variety: SeedVariety, plan: EvaluationPlan
) -> Table:
    rows: list[tuple[Cell, ...]] = []

    def add(target: str, wanted: str, found: Estimate, spec: str, is_met: bool) -> None:
        rows.append((target, wanted, format(found, spec), "yes" if is_met else "no"))

    def add_loss(target: str, lost: Estimate) -> None:
        add(target, f"at most {MAX_LOSS:.0%}", lost, ".1%", lost.value <= MAX_LOSS)

    share_SGA = np.array([[right_AF.mean(1) for right_AF in result.segments[1:]] for result in results])
    for i, (name, least) in enumerate(LEAST_SHARES.items()):
        share = estimate(share_SGA[:, :, i])
        add(f"{name}, from a second after a switch", f"at least {least:.0%}", share, ".1%", share.value >= least)
        lost = estimate(share_SGA[:, 0, i] - share_SGA[:, -1, i])
        add_loss(f"{name}, lost from the first to the fifth switch", lost)
    jumps = estimate([result.jumps for result in results], np.median)
    add("median jump at a switch, px", f"at most {MAX_JUMP:g}", jumps, ".1f", jumps.value <= MAX_JUMP)

    latents = plan.marks[-1]
    lost_SA = released.collect_right(0) - released.collect_right(-1)
    for i, name in enumerate(LEAST_SHARES):
        add_loss(f"{name}, lost over {latents} latents", estimate(lost_SA[:, i]))
    area = estimate([observations[-1].area for observations in released.observations])
    low, high = AREAS
    add(f"area after {latents} latents", f"{low} to {high}", area, ".3f", low <= area.value <= high)

    least = LEAST_VARIETY * variety.difference_of_world.value
    found = variety.difference
    add("difference between seeds, of 255", f"at least {least:.1f}", found, ".1f", found.value >= least)
    columns = (("target", ""), ("wanted", ""), ("found", ""), ("met", ""))
    note = (
        f"Numbers are means or medians over seeds, in brackets their 95 % intervals (bootstrap over seeds); a target "
        f"is met by the number itself. Seeds should differ by {LEAST_VARIETY:.0%} of what clips of the world differ by."
    )
    return Table("Targets", columns, tuple(rows), note)
