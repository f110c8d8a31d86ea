"""A run makes blocks only while somebody watches, and gives up the machine when nobody does."""

import pytest

from longlive.live.pace import Pace, Status

BLOCK = 0.75  # seconds
ONE, OTHER = "0" * 8, "1" * 8


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock) -> Pace:
    return Pace(clock=clock, longest=60)


def count_blocks(pace: Pace, made: int = 0) -> int:
    """Make blocks until the pace says otherwise; return how many the video has then."""
    while pace.choose(made * BLOCK, BLOCK) is Status.MAKING:
        pace.keep_awake()
        made += 1
    return made


def test_a_run_is_two_blocks_ahead_of_the_viewer_who_is_furthest(pace, clock):
    assert count_blocks(pace) == 2  # nobody was heard yet, so they are at the beginning
    pace.observe(ONE, 3 * BLOCK, clock.now)
    pace.observe(OTHER, 1 * BLOCK, clock.now)
    assert count_blocks(pace, 4) == 5
    assert pace.choose(5 * BLOCK, BLOCK) is Status.AHEAD


def test_a_viewer_who_says_nothing_for_ten_seconds_is_forgotten(pace, clock):
    pace.observe(ONE, 10 * BLOCK, clock.now)
    assert count_blocks(pace, 10) == 12
    clock.now += 11
    pace.observe(OTHER, 2 * BLOCK, clock.now)
    assert pace.choose(4 * BLOCK, BLOCK) is Status.AHEAD


def test_no_viewer_is_further_than_the_end_of_the_video(pace, clock):
    pace.observe(ONE, 1e6, clock.now)
    assert pace.choose(0, BLOCK) is Status.MAKING
    pace.observe(ONE, 20 * BLOCK, clock.now)
    pace.rewind(4 * BLOCK)
    assert count_blocks(pace, 4) == 6


def test_a_viewer_who_has_not_heard_of_a_rewind_is_not_ahead_of_it(pace, clock):
    """The page says where it was until it learns of the rewind, also in the message that comes just behind it."""
    pace.observe(ONE, 40 * BLOCK, clock.now)
    assert count_blocks(pace, 40) == 42
    pace.rewind(20 * BLOCK)
    pace.observe(ONE, 40 * BLOCK, clock.now)
    assert count_blocks(pace, 20) == 22


def test_a_film_that_a_viewer_plays_is_not_parked_however_far_it_is_made(pace, clock):
    for seconds in range(0, 50, 2):
        clock.now += 2
        pace.observe(ONE, seconds, clock.now)
        assert pace.choose(45, BLOCK) is (Status.AHEAD if seconds < 44 else Status.MAKING)
    for _ in range(16):  # then the viewer stops
        assert pace.choose(60 - BLOCK, BLOCK) is Status.AHEAD
        clock.now += 2
        pace.observe(ONE, seconds, clock.now)
    clock.now += 2
    pace.observe(ONE, seconds, clock.now)
    assert pace.choose(60 - BLOCK, BLOCK) is Status.PARKED


def test_a_run_that_nobody_watches_is_parked(pace, clock):
    assert count_blocks(pace) == 2
    clock.now += 29
    assert pace.choose(2 * BLOCK, BLOCK) is Status.AHEAD
    clock.now += 2
    assert pace.choose(2 * BLOCK, BLOCK) is Status.PARKED


def test_a_long_block_parks_nothing_while_somebody_watches(pace, clock):
    for block in range(3):
        clock.now += 100
        pace.keep_awake()
        pace.observe(ONE, block * BLOCK, clock.now - 1)
        assert pace.choose(block * BLOCK, BLOCK) is Status.MAKING


@pytest.mark.parametrize("how", ["paused", "without a prompt", "held"])
def test_a_run_that_makes_nothing_for_half_a_minute_is_parked_also_if_watched(pace, clock, how):
    pace.is_paused = how == "paused"
    state = {"has_prompt": how != "without a prompt", "is_held": how == "held"}
    waiting = Status.WAITING if how == "without a prompt" else Status.PAUSED
    for _ in range(6):
        clock.now += 5
        pace.observe(ONE, 0, clock.now)
        assert pace.choose(0, BLOCK, **state) is waiting
    pace.keep_awake()  # somebody says something
    clock.now += 29
    pace.observe(ONE, 0, clock.now)
    assert pace.choose(0, BLOCK, **state) is waiting
    clock.now += 2
    pace.observe(ONE, 0, clock.now)
    assert pace.choose(0, BLOCK, **state) is Status.PARKED


def test_what_is_urgent_waits_for_nobody_but_a_pause(pace, clock):
    clock.now += 3600
    assert pace.choose(40 * BLOCK, BLOCK, is_urgent=True) is Status.MAKING
    pace.is_paused = True
    assert pace.choose(40 * BLOCK, BLOCK, is_urgent=True) is Status.PARKED


def test_the_largest_length_completes_a_video(pace):
    assert pace.choose(60 - BLOCK, BLOCK, is_urgent=True) is Status.MAKING
    assert pace.choose(60, BLOCK, is_urgent=True) is Status.COMPLETE


def test_without_viewers_a_run_is_never_parked_nor_ahead(clock):
    pace = Pace(is_watched=False, clock=clock)
    clock.now += 3600
    assert pace.choose(3600, BLOCK) is Status.MAKING
    pace.is_paused = True
    clock.now += 3600
    assert pace.choose(3600, BLOCK) is Status.PAUSED


def test_what_is_over_says_so():
    over = {Status.PARKED, Status.STOPPED, Status.COMPLETE, Status.INTERRUPTED, Status.FAILED}
    assert {status for status in Status if status.is_over} == over
