"""What the passes of a rolling video attend: with the released numbers (Rolling Forcing's code), and with others."""

import pytest

from longlive.config import RolloutConfig
from longlive.errors import ConfigError
from longlive.model.placement import Placement
from longlive.rollout.cache_passes import count_rebuild_passes
from longlive.rollout.rolling_window import RollingWindow, make_window
from longlive.session.boundary import Boundary

RELEASED = RolloutConfig.roll()
CONFIGS = [
    RELEASED,
    RolloutConfig.roll(steps=(1000, 750, 500, 250)),
    RolloutConfig.roll(steps=(1000, 600, 200), window=15),
    RolloutConfig.roll(steps=(1000,), window=6),
]


def roll_window(config: RolloutConfig) -> RollingWindow:
    window = make_window(config)
    assert isinstance(window, RollingWindow)
    return window


def list_frames(window: RollingWindow, place: Placement, end: int) -> list[int]:
    """List the kept frames that a pass attends, while `end` frames are kept or being written."""
    held = {
        window.find_slot(frame): frame for frame in range(end) if frame < window.sink or frame >= end - window.recent
    }
    return sorted(held[slot] for slot in place.attended_slots)


@pytest.mark.parametrize(
    ("start", "frames", "finished", "sink_start"),
    [
        (0, 3, [], 0),
        (0, 15, [], 0),
        (3, 15, [], 0),
        (6, 15, [3, 4, 5], 0),
        (9, 15, [6, 7, 8], 3),
        (18, 15, [15, 16, 17], 12),
        (30, 15, [27, 28, 29], 24),
        (33, 12, [*range(27, 33)], 24),
        (42, 3, [*range(27, 42)], 24),
    ],
)
def test_a_joint_pass_attends_what_the_reference_attends(start, frames, finished, sink_start):
    window = roll_window(RELEASED)
    place = window.place_block(start, frames)
    sink = [0, 1, 2] if start else []
    assert list_frames(window, place, start) == sink + finished
    assert (place.sink_start, place.slots, place.passing) == (sink_start, set(), True)


@pytest.mark.parametrize(
    ("start", "attended"),
    [
        (0, [*range(3)]),
        (3, [*range(6)]),
        (18, [*range(21)]),
        (21, [*range(3, 24)]),
        (24, [*range(6, 27)]),
        (30, [*range(12, 33)]),
    ],
)
def test_a_late_clean_pass_attends_no_sink(start, attended):
    window = roll_window(RELEASED)
    place = window.place_clean(start, 3)
    assert list_frames(window, place, start + 3) == attended
    assert place.sink_start == 0
    assert {window.find_slot(frame) for frame in range(start, start + 3)} == place.slots


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_recache_writes_what_the_next_passes_attend(config):
    """All that a clean pass, and the joint passes with any number of blocks left, attend of finished frames."""
    window = roll_window(config)
    for end in range(3, 90, 3):
        passes = [window.place_block(end, 3 * count) for count in range(1, len(config.steps) + 1)]
        needed = set().union(*(each.attended_slots for each in passes))
        clean = window.place_clean(end, 3)
        needed |= clean.attended_slots - clean.slots
        kept, renewed = (window.place_recache(end, renew=renew) for renew in (False, True))
        sink = {0, 1, 2}
        assert needed <= renewed.slots
        assert needed - kept.slots <= (sink if end > config.window else set())
        assert renewed.frames <= config.window
        assert kept.attended_slots == kept.slots
        assert needed - clean.attended_slots <= window.list_needed_slots(end, 3)


@pytest.mark.parametrize("layers", [1, 2, 3, 30])
def test_a_rebuild_repeats_five_blocks_six_for_each_layer_below_and_the_sink(layers):
    assert count_rebuild_passes(RELEASED, [(0, Boundary.CUT)], 3000, layers) == 5 + 6 * (layers - 1) + 1


def test_at_30_layers_a_rebuild_takes_180_passes_and_after_a_recache_two():
    begins = (0, Boundary.CUT)
    assert count_rebuild_passes(RELEASED, [begins], 3000, 30) == 180
    assert count_rebuild_passes(RELEASED, [begins, (3000, Boundary.RECACHE)], 3000, 30) == 2
    assert count_rebuild_passes(RELEASED, [begins, (3000, Boundary.RENEW)], 3000, 30) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 12}, "window is 12; a rolling video of 5 steps needs a multiple of 3 of at least 18"),
        ({"window": 22}, "window is 22; a rolling video of 5 steps needs a multiple of 3"),
        ({"sink": 6}, "block is 3 and sink is 6; a rolling video has 3 frames in each"),
        ({"block": 1}, "block is 1 and sink is 3"),
        ({"positions": "absolute"}, "positions are absolute; a rolling video has unbounded ones"),
        ({"steps": (1000, 1000, 600)}, "they must fall"),
    ],
)
def test_numbers_that_rolling_forcing_cannot_have_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        RolloutConfig.roll(**fields)
