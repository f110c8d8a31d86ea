"""The report of both kinds: a switch that comes late counts as late, and each kind has its rows."""

from dataclasses import replace

import pytest
from test_miniature_report import Blocks

from longlive.config import RolloutKind
from longlive.errors import ConfigError
from longlive.miniature.clips import choose_sky, seed_random
from longlive.miniature.evaluation.blends import BLOCK_FRAMES
from longlive.miniature.evaluation.plan import EvaluationPlan, choose_scenes
from longlive.miniature.evaluation.rolling import count_delay, report_rolling
from longlive.miniature.evaluation.switches import SwitchResult
from longlive.miniature.world import Clip, render_clips
from longlive.units import count_pixel_frames

OPENING, SEGMENT = 12, 15
PLAN = EvaluationPlan(openings=(6,), segment_frames=6, marks=(6, 9), table_marks=(6, 9), untimed_blocks=0, windows=())


@pytest.mark.parametrize(("late", "delay"), [(0, 0), (2, 2), (9, 5)])
def test_a_delay_is_counted_in_blocks(late, delay):
    """The picture fades into the new prompt within its first block; after all five blocks it has not come."""
    old, new = choose_scenes(0, 2)
    begin = count_pixel_frames(OPENING) + late * BLOCK_FRAMES
    clip = Clip(((0, old), (begin, new)), choose_sky(seed_random("sky", 0)))
    pixels = render_clips([clip], count_pixel_frames(OPENING + SEGMENT))[0][0]
    assert count_delay(SwitchResult.of_pixels(pixels, OPENING, old, new).right_AF) == delay


def test_each_kind_has_its_rows(miniature):
    miniature = replace(miniature, vae=Blocks())
    long, switches = (table.as_dict() for table in report_rolling(miniature, miniature, 2, PLAN).tables)
    assert [(row["kind"], row["latents"]) for row in long["rows"]] == [
        (kind.value, mark) for kind in RolloutKind for mark in PLAN.table_marks
    ]
    assert [(row["kind"], row["latent"], row["memory"]) for row in switches["rows"]] == [
        (kind.value, 6, memory) for kind in RolloutKind for memory in ("discard", "keep", "recache")
    ]


def test_one_seed_is_refused(miniature):
    with pytest.raises(ConfigError, match="seeds is 1; intervals need at least 2"):
        report_rolling(miniature, miniature, 1)
