"""Which passes rebuild a memory: integers only, against a simulation that follows every dependency."""

import random
from itertools import pairwise

import pytest

from longlive.config import RolloutConfig
from longlive.replay import Call, calls_before, needed
from longlive.timeline import Boundary
from longlive.window import Placement, Window

CONFIGS = [
    RolloutConfig(),
    RolloutConfig(window=9, sink=0),
    RolloutConfig(window=6, sink=3),
    RolloutConfig(window=5, sink=3, block=1),
    RolloutConfig(window=17, sink=7),
    RolloutConfig(window=11, sink=4, block=2),
]
START = (0, Boundary.DISCARD)
History = list[tuple[int, Boundary]]


def window_of(config: RolloutConfig) -> Window:
    return Window(config.sink, config.recent)


def random_history(rng: random.Random, config: RolloutConfig, blocks: int) -> tuple[History, int]:
    """Segments of a video of `blocks` blocks, the last of which may begin at its very end."""
    starts = sorted(rng.sample(range(1, blocks + 1), rng.randint(0, min(5, blocks))))
    return [START, *((start * config.block, rng.choice(list(Boundary))) for start in starts)], blocks * config.block


def played(config: RolloutConfig, history: History, end: int) -> list[Call]:
    """The clean passes and recaches of a video in the order they are made, from its first frame on."""
    window, calls, origin = window_of(config), [], 0
    for segment, (begins, boundary) in enumerate(history):
        match boundary:
            case Boundary.DISCARD:
                calls, origin = [], begins
            case Boundary.RECACHE | Boundary.RENEW:
                place = window.recache(begins - origin, renew=boundary is Boundary.RENEW)
                calls.append(Call(segment, origin, place, is_recache=True))
        until = history[segment + 1][0] if segment + 1 < len(history) else end
        for frame in range(begins, until, config.block):
            calls.append(Call(segment, origin, window.block(frame - origin, config.block), is_recache=False))
    return calls


def depended_on(calls: list[Call], upcoming: Placement, layers: int) -> set[int]:
    """Indices of the calls that anything `upcoming` attends was computed from, found key by key and layer by layer.

    A call's keys in a layer come from what it attended in every layer below.
    """
    attended: list[dict[int, int]] = []  # of each call: slot -> the call whose keys lay there
    writer: dict[int, int] = {}
    for index, call in enumerate(calls):
        attended.append({slot: writer[slot] for slot in range(call.place.filled) if slot not in call.place.slots})
        writer |= dict.fromkeys(call.place.slots, index)
    seen: set[tuple[int, int]] = set()
    todo = [
        (writer[slot], layer)
        for slot in range(upcoming.filled)
        if slot not in upcoming.slots
        for layer in range(layers)
    ]
    while todo:
        index, layer = todo.pop()
        if (index, layer) not in seen:
            seen.add((index, layer))
            todo += [(source, below) for source in attended[index].values() for below in range(layer)]
    return {index for index, _ in seen}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_calls_are_those_made_the_first_time_back_to_the_last_cut(config):
    rng = random.Random(1)
    for _ in range(200):
        history, end = random_history(rng, config, rng.randint(1, 40))
        assert list(calls_before(config, history, end))[::-1] == played(config, history, end)


@pytest.mark.parametrize("layers", [1, 2, 3, 30])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_needed_are_exactly_the_calls_that_something_depends_on(config, layers):
    """Not one call less, or the memory is another; not one more, or a rebuild is slow."""
    rng = random.Random(2)
    for _ in range(60):
        history, end = random_history(rng, config, rng.randint(1, 40))
        calls = played(config, history, end)
        upcoming = window_of(config).block(end - calls[0].origin if calls else 0, config.block)
        found = needed(reversed(calls), upcoming, layers, made=None)
        assert found == [calls[index] for index in sorted(depended_on(calls, upcoming, layers))]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_memory_kept_warm_lacks_nothing_when_it_goes_on(config):
    """Blocks and switches one by one: what is made now and what was made before cover every dependency."""
    rng, layers = random.Random(3), 3
    for _ in range(40):
        history, end = random_history(rng, config, rng.randint(3, 30))
        begun = rng.randrange(0, end, config.block)  # where the memory was rebuilt from nothing
        present: list[Call] = []
        made = None
        for now in range(begun, end + 1, config.block):
            past = [switch for switch in history if switch[0] <= now]
            calls = played(config, past, now)
            upcoming = window_of(config).block(now - (calls[0].origin if calls else now), config.block)
            present += needed(calls_before(config, past, now), upcoming, layers, made=made)
            made = next(calls_before(config, past, now), None)
            assert {calls.index(calls[index]) for index in depended_on(calls, upcoming, layers)} <= {
                index for index, call in enumerate(calls) if call in present
            }


def test_with_nothing_new_nothing_is_made_again():
    config, history, end = RolloutConfig(), [START, (15, Boundary.RECACHE)], 30
    upcoming = window_of(config).block(end, config.block)
    newest = next(calls_before(config, history, end))
    assert needed(calls_before(config, history, end), upcoming, 30, made=newest) == []


def test_one_more_block_costs_one_clean_pass():
    config, history = RolloutConfig(), [START]
    newest = next(calls_before(config, history, 30))
    upcoming = window_of(config).block(33, config.block)
    (call,) = needed(calls_before(config, history, 33), upcoming, 30, made=newest)
    assert (call.place.start, call.place.frames, call.is_recache) == (30, 3, False)


def test_a_cut_hides_everything_before_it():
    config, history = RolloutConfig(), [START, (6, Boundary.RECACHE), (30, Boundary.DISCARD), (36, Boundary.KEEP)]
    calls = list(calls_before(config, history, 39))
    assert [(call.segment, call.origin, call.place.start) for call in calls] == [(3, 30, 6), (2, 30, 3), (2, 30, 0)]
    assert list(calls_before(config, history[:3], 30)) == []


def test_positions_and_sink_count_from_the_cut():
    config = RolloutConfig()
    history = [START, (30, Boundary.DISCARD), (36, Boundary.RECACHE)]
    recache, *_ = calls_before(config, history, 36)
    assert (recache.place.start, recache.place.frames) == (0, 6)  # no reach across the cut
    assert recache.place.slots == set(range(6))


def test_a_kept_memory_makes_no_call_but_the_text_of_later_ones_changes():
    config = RolloutConfig()
    kept = list(calls_before(config, [START, (9, Boundary.KEEP)], 15))
    plain = list(calls_before(config, [START], 15))
    assert [call.place for call in kept] == [call.place for call in plain]
    assert [call.segment for call in kept] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("end", "renew", "sources"),
    [
        (30, False, ["block 0", "recache"]),  # the sink was written by the first block
        (30, True, ["recache"]),  # the recache wrote the sink too
        (12, False, ["recache"]),  # within the window everything is rewritten
        (12, True, ["recache"]),
    ],
)
def test_right_after_a_recache_only_it_and_the_sink_are_rebuilt(end, renew, sources):
    config = RolloutConfig()
    history = [START, (end, Boundary.RENEW if renew else Boundary.RECACHE)]
    found = needed(calls_before(config, history, end), window_of(config).block(end, 3), 30, made=None)
    assert ["recache" if call.is_recache else f"block {call.place.start}" for call in found] == sources


def test_switches_without_recache_do_not_hide_an_earlier_recache():
    config = RolloutConfig()
    history = [START, (30, Boundary.RENEW), (33, Boundary.KEEP), (36, Boundary.KEEP)]
    found = needed(calls_before(config, history, 39), window_of(config).block(39, 3), 30, made=None)
    assert [(call.segment, call.is_recache) for call in found] == [(1, True), (1, False), (2, False), (3, False)]


def test_a_rebuild_is_as_deep_as_the_network_and_no_deeper():
    """(recent + (layers - 1) (recent - block)) frames of clean passes, and the block that holds the sink."""
    config, end = RolloutConfig(), 900
    upcoming = window_of(config).block(end, config.block)
    counts = [len(needed(calls_before(config, [START], end), upcoming, layers, made=None)) for layers in (1, 2, 3, 30)]
    recent_blocks = (config.recent - config.block) // config.block
    assert counts == [1 + recent_blocks * layers for layers in (1, 2, 3, 30)]
    assert all(later - earlier > 0 for earlier, later in pairwise(counts))


def test_the_sink_of_a_small_block_comes_from_several_blocks():
    config = RolloutConfig(window=6, sink=3, block=1)
    found = needed(calls_before(config, [START], 50), window_of(config).block(50, 1), 1, made=None)
    assert [call.place.start for call in found] == [0, 1, 2, 48, 49]
