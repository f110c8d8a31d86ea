"""The passes that rebuild a KV cache equal those of a simulation that follows every dependency. Integers only."""

import random
from itertools import pairwise

import pytest

from longlive.config import RolloutConfig
from longlive.rollout.cache_passes import CachePass, CleanPass, Recache, choose_missing_passes, list_cache_passes
from longlive.rollout.rolling_window import make_window
from longlive.session.boundary import Boundary

CONFIGS = [
    RolloutConfig(),
    RolloutConfig(window=9, sink=0),
    RolloutConfig(window=6, sink=3),
    RolloutConfig(window=5, sink=3, block=1),
    RolloutConfig(window=17, sink=7),
    RolloutConfig(window=11, sink=4, block=2),
]
START = (0, Boundary.CUT)
History = list[tuple[int, Boundary]]


def draw_history(rng: random.Random, config: RolloutConfig, blocks: int) -> tuple[History, int]:
    """Segments of a video of `blocks` blocks, the last of which may begin at its very end."""
    starts = sorted(rng.sample(range(1, blocks + 1), rng.randint(0, min(5, blocks))))
    return [START, *((start * config.block, rng.choice(list(Boundary))) for start in starts)], blocks * config.block


def list_passes(config: RolloutConfig, history: History, end: int) -> list[CachePass]:
    """List the clean passes and recaches of a video in the order they are made, from its first frame on."""
    window, passes, origin = make_window(config), [], 0
    for segment, (begins, boundary) in enumerate(history):
        match boundary:
            case Boundary.CUT:
                passes, origin = [], begins
            case Boundary.RECACHE | Boundary.RENEW:
                end_, renew = begins - origin, boundary is Boundary.RENEW
                passes.append(Recache(segment, origin, window.place_recache(end_, renew=renew), end_, renew))
        until = history[segment + 1][0] if segment + 1 < len(history) else end
        for frame in range(begins, until, config.block):
            passes.append(CleanPass(segment, origin, window.place_clean(frame - origin, config.block)))
    return passes


def find_dependencies(passes: list[CachePass], needed: set[int], layers: int) -> set[int]:
    """Find the indices of the passes that the slots `needed` depend on, key by key and layer by layer.

    The keys of a pass in a layer come from what it attended in every layer below.
    """
    attended: list[dict[int, int]] = []  # of each pass: slot -> the pass that wrote its keys
    writer: dict[int, int] = {}
    for index, each in enumerate(passes):
        attended.append({slot: writer[slot] for slot in each.place.attended_slots - each.place.slots})
        writer |= dict.fromkeys(each.place.slots, index)
    seen: set[tuple[int, int]] = set()
    todo = [(writer[slot], layer) for slot in needed for layer in range(layers)]
    while todo:
        index, layer = todo.pop()
        if (index, layer) not in seen:
            seen.add((index, layer))
            todo += [(source, below) for source in attended[index].values() for below in range(layer)]
    return {index for index, _ in seen}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_passes_are_those_made_the_first_time_back_to_the_last_cut(config):
    rng = random.Random(1)
    for _ in range(200):
        history, end = draw_history(rng, config, rng.randint(1, 40))
        assert list(list_cache_passes(config, history, end))[::-1] == list_passes(config, history, end)


@pytest.mark.parametrize("layers", [1, 2, 3, 30])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_needed_are_exactly_the_passes_that_something_depends_on(config, layers):
    """Not one pass less, or the KV cache differs; not one more, or a rebuild is slow."""
    rng = random.Random(2)
    for _ in range(60):
        history, end = draw_history(rng, config, rng.randint(1, 40))
        passes = list_passes(config, history, end)
        needed = make_window(config).list_needed_slots(end - passes[0].origin if passes else 0, config.block)
        found = choose_missing_passes(reversed(passes), needed, layers, made=None)
        assert found == [passes[index] for index in sorted(find_dependencies(passes, needed, layers))]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_warm_cache_lacks_nothing_when_the_video_continues(config):
    """Blocks and switches one by one: what is made now and what was made before cover every dependency."""
    rng, layers = random.Random(3), 3
    for _ in range(40):
        history, end = draw_history(rng, config, rng.randint(3, 30))
        start = rng.randrange(0, end, config.block)  # where the KV cache was rebuilt from nothing
        present: list[CachePass] = []
        made = None
        for now in range(start, end + 1, config.block):
            past = [switch for switch in history if switch[0] <= now]
            passes = list_passes(config, past, now)
            needed = make_window(config).list_needed_slots(now - (passes[0].origin if passes else now), config.block)
            present += choose_missing_passes(list_cache_passes(config, past, now), needed, layers, made=made)
            made = next(list_cache_passes(config, past, now), None)
            assert {passes.index(passes[index]) for index in find_dependencies(passes, needed, layers)} <= {
                index for index, each in enumerate(passes) if each in present
            }


def test_a_cache_that_is_up_to_date_needs_no_pass():
    config, history, end = RolloutConfig(), [START, (15, Boundary.RECACHE)], 30
    needed = make_window(config).list_needed_slots(end, config.block)
    newest = next(list_cache_passes(config, history, end))
    assert choose_missing_passes(list_cache_passes(config, history, end), needed, 30, made=newest) == []


def test_one_more_block_costs_one_clean_pass():
    config, history = RolloutConfig(), [START]
    newest = next(list_cache_passes(config, history, 30))
    needed = make_window(config).list_needed_slots(33, config.block)
    (each,) = choose_missing_passes(list_cache_passes(config, history, 33), needed, 30, made=newest)
    assert (each.place.start, each.place.frames, isinstance(each, Recache)) == (30, 3, False)


def test_a_cut_hides_everything_before_it():
    config, history = RolloutConfig(), [START, (6, Boundary.RECACHE), (30, Boundary.CUT), (36, Boundary.KEEP)]
    passes = list(list_cache_passes(config, history, 39))
    assert [(each.segment, each.origin, each.place.start) for each in passes] == [(3, 30, 6), (2, 30, 3), (2, 30, 0)]
    assert list(list_cache_passes(config, history[:3], 30)) == []


def test_positions_and_sink_count_from_the_cut():
    config = RolloutConfig()
    history = [START, (30, Boundary.CUT), (36, Boundary.RECACHE)]
    recache, *_ = list_cache_passes(config, history, 36)
    assert (recache.place.start, recache.place.frames) == (0, 6)  # no reach across the cut
    assert recache.place.slots == set(range(6))


def test_a_kept_cache_makes_no_pass_but_the_text_of_later_ones_changes():
    config = RolloutConfig()
    kept = list(list_cache_passes(config, [START, (9, Boundary.KEEP)], 15))
    plain = list(list_cache_passes(config, [START], 15))
    assert [each.place for each in kept] == [each.place for each in plain]
    assert [each.segment for each in kept] == [1, 1, 0, 0, 0]


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
    found = choose_missing_passes(
        list_cache_passes(config, history, end), make_window(config).list_needed_slots(end, 3), 30, made=None
    )
    assert ["recache" if isinstance(each, Recache) else f"block {each.place.start}" for each in found] == sources


def test_switches_without_recache_do_not_hide_an_earlier_recache():
    config = RolloutConfig()
    history = [START, (30, Boundary.RENEW), (33, Boundary.KEEP), (36, Boundary.KEEP)]
    found = choose_missing_passes(
        list_cache_passes(config, history, 39), make_window(config).list_needed_slots(39, 3), 30, made=None
    )
    assert [(each.segment, isinstance(each, Recache)) for each in found] == [
        (1, True),
        (1, False),
        (2, False),
        (3, False),
    ]


@pytest.mark.parametrize(
    ("window", "sink", "block"), [(12, 3, 3), (12, 0, 3), (21, 0, 3), (15, 6, 3), (12, 3, 1), (9, 3, 3)]
)
def test_a_rebuild_is_as_deep_as_the_network_and_no_deeper(window, sink, block):
    """Each layer needs the frames that the ring holds besides the block; and there is the sink."""
    config, end = RolloutConfig(window=window, sink=sink, block=block), 900
    needed = make_window(config).list_needed_slots(end, config.block)
    counts = [
        len(choose_missing_passes(list_cache_passes(config, [START], end), needed, layers, made=None))
        for layers in (1, 2, 3, 30)
    ]
    assert counts == [(layers * (config.recent - block) + sink) // block for layers in (1, 2, 3, 30)]
    assert all(later - earlier > 0 for earlier, later in pairwise(counts))


def test_the_sink_of_a_small_block_comes_from_several_blocks():
    config = RolloutConfig(window=6, sink=3, block=1)
    found = choose_missing_passes(
        list_cache_passes(config, [START], 50), make_window(config).list_needed_slots(50, 1), 1, made=None
    )
    assert [each.place.start for each in found] == [0, 1, 2, 48, 49]
