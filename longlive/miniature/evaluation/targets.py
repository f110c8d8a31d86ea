"""What the miniature was made for, beside what it reaches.

Dimension key: S seeds, G segments, A attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluation.report import Cell, Estimate, Table, estimate
from .plan import EvaluationPlan
from .seed_variety import SeedVariety
from .switches import SeedResult
from .windows import READS, WindowResult, read_shape

LEAST_SHARES = {"colour": 0.99, "shape": 0.97, "motion": 0.99, "background": 0.99}
MAX_LOSS = 0.03  # of an attribute, over all switches or the longest video
MAX_JUMP = 2.0  # pixels, median
LEAST_SHAPE = 0.95  # right at the end of the longest video
LEAST_READS: Mapping[str, float] = {"likeness": 0.88, "sky correlation": 0.9}  # there too
AREAS = (0.95, 1.05)  # of the thing, there too
LEAST_DIFFERENCE = 6.0  # of 255, between seeds
LEAST_OPENINGS = 0.99  # of first blocks, in every attribute


def tabulate_targets(
    results: Sequence[SeedResult], released: WindowResult, variety: SeedVariety, plan: EvaluationPlan
) -> Table:
    rows: list[tuple[Cell, ...]] = []

    def add(target: str, wanted: str, found: Estimate, spec: str, is_met: bool) -> None:
        rows.append((target, wanted, format(found, spec), "yes" if is_met else "no"))

    def add_loss(target: str, lost: Estimate) -> None:
        add(target, f"at most {MAX_LOSS:.0%}", lost, ".1%", lost.value <= MAX_LOSS)

    def add_least(target: str, least: float, found: Estimate, spec: str) -> None:
        add(target, f"at least {least:{'.0%' if '%' in spec else 'g'}}", found, spec, found.value >= least)

    share_SGA = np.array([[right_AF.mean(1) for right_AF in result.segments[1:]] for result in results])
    for i, (name, least) in enumerate(LEAST_SHARES.items()):
        add_least(f"{name}, from a second after a switch", least, estimate(share_SGA[:, :, i]), ".1%")
        lost = estimate(share_SGA[:, 0, i] - share_SGA[:, -1, i])
        add_loss(f"{name}, lost from the first to the fifth switch", lost)
    jumps = estimate([result.jumps for result in results], np.median)
    add("median jump at a switch, px", f"at most {MAX_JUMP:g}", jumps, ".1f", jumps.value <= MAX_JUMP)

    latents = plan.marks[-1]
    lost_SA = released.collect_right(0) - released.collect_right(-1)
    for i, name in enumerate(LEAST_SHARES):
        add_loss(f"{name}, lost over {latents} latents", estimate(lost_SA[:, i]))
    add_least(f"shape after {latents} latents", LEAST_SHAPE, estimate(released.collect(read_shape)[:, -1]), ".1%")
    for name, least in LEAST_READS.items():
        add_least(f"{name} after {latents} latents", least, estimate(released.collect(READS[name])[:, -1]), ".2f")
    area = estimate([observations[-1].area for observations in released.observations])
    low, high = AREAS
    add(f"area after {latents} latents", f"{low} to {high}", area, ".3f", low <= area.value <= high)

    add_least("difference between seeds, of 255", LEAST_DIFFERENCE, variety.difference, ".1f")
    add_least("first blocks of those seeds, right in every attribute", LEAST_OPENINGS, variety.right, ".1%")
    columns = (("target", ""), ("wanted", ""), ("found", ""), ("met", ""))
    note = (
        "Numbers are means or medians over seeds, in brackets their 95 % intervals (bootstrap over seeds); a target "
        "is met by the number itself."
    )
    return Table("Targets", columns, tuple(rows), note)
