"""The laws for rolling videos, whose blocks are denoised jointly: also cut, saved and rewound between two passes."""

from collections.abc import Iterator

import pytest
import tiny
import torch

from longlive.config import RolloutConfig
from longlive.errors import SessionError
from longlive.model.causal import TextKeys
from longlive.rollout.kv_cache import RollingLayerKVCache
from longlive.rollout.rollout import Pass, PassKind
from longlive.rollout.sampler import Sampler, check_timeline, count_cache_bytes, count_timeline_passes
from longlive.session.block_store import Store
from longlive.session.boundary import Blend, Boundary
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session
from longlive.session.timeline import Segment

CONFIG = RolloutConfig.roll()
MODEL = tiny.model()
BLOCKS = 11  # as many as see a moved sink, a clean pass without it, and a ring that has gone round


def make_rolling(**facts) -> Session:
    return tiny.session(CONFIG, **facts)


def finish(video: Session, sampler: Sampler | None = None) -> Session:
    *_, video = video, *(sampler or Sampler(MODEL)).finish(video)
    return video


@pytest.fixture(scope="module")
def whole() -> Session:
    """A video of 11 blocks, then its end: 15 blocks."""
    return finish(Sampler(MODEL).sample(make_rolling(), BLOCKS))


@pytest.fixture(scope="module")
def states() -> list[Session]:
    """The video after each of its joint passes, by one sampler."""
    return [*advance_all(make_rolling(), Sampler(MODEL))]


def advance_all(video: Session, sampler: Sampler) -> Iterator[Session]:
    while len(video.blocks) < BLOCKS:
        video = sampler.advance(video)
        yield video


def assert_same(video: Session, expected: Session) -> None:
    assert torch.equal(video.latents(), expected.latents())
    assert (video.in_flight is None) == (expected.in_flight is None)
    if video.in_flight and expected.in_flight:
        assert video.in_flight.level == expected.in_flight.level
        assert all(map(torch.equal, video.in_flight.blocks, expected.in_flight.blocks))


def test_law_3_cut_after_every_pass_and_rebuilt_it_is_the_same_bit_for_bit(states, whole):
    video = make_rolling()
    for state in states:
        video = Sampler(MODEL).advance(video)
        assert_same(video, state)
        assert video.in_flight
        assert state.in_flight
        assert video.in_flight.key == state.in_flight.key
    assert_same(finish(video), whole)
    assert video.keys == states[-1].keys


def test_law_3_saved_and_loaded_after_every_pass_it_goes_on_as_before(states, whole, tmp_path):
    for state in states:
        save_session(state, tmp_path / "session")
        loaded = load_session(tmp_path / "session")
        assert_same(loaded, state)
        left = BLOCKS - len(loaded.blocks)
        assert_same(finish(Sampler(MODEL).sample(loaded, left) if left else loaded), whole)


def test_law_3_the_flush_too_is_cut_saved_and_resumed(whole, states, tmp_path):
    video, seen = states[-1], 0
    while video.in_flight:
        save_session(video, tmp_path / "session")
        video = Sampler(MODEL).advance(load_session(tmp_path / "session"), whole.num_begun)
        seen += 1
    assert seen == 4
    assert_same(video, whole)
    save_session(video, tmp_path / "session")
    again = Sampler(MODEL).sample(load_session(tmp_path / "session"), 2)
    assert_same(again, Sampler(MODEL).sample(whole, 2))


def test_law_3_one_script_is_a_chain_of_samplers_and_a_finish(whole):
    """The end is known from the beginning, or said when 4 blocks are in flight."""
    *_, known = Sampler(MODEL).extend(make_rolling(), BLOCKS + 4, BLOCKS + 4)
    assert_same(known, whole)
    assert known.ends == whole.ends == (45,)
    chain = make_rolling()
    for blocks in (1, 3, 7):
        chain = Sampler(MODEL).sample(chain, blocks)
    assert_same(finish(chain), whole)
    assert finish(chain).keys == whole.keys == known.keys


def test_law_3_from_the_store_it_is_the_same_and_nothing_is_computed(whole, tmp_path, monkeypatch):
    finish(Sampler(MODEL, store=Store(tmp_path)).sample(make_rolling(), BLOCKS), Sampler(MODEL, store=Store(tmp_path)))
    monkeypatch.setattr(Sampler, "_compute", None)
    found = []
    sampler = Sampler(MODEL, store=Store(tmp_path), on_found=lambda: found.append(1))
    assert_same(finish(sampler.sample(make_rolling(), BLOCKS), sampler), whole)
    assert len(found) == BLOCKS + 4 + 4


@pytest.mark.parametrize("stores", [True, False])
@pytest.mark.parametrize("block", [0, 1, 4, 9])
def test_law_3_after_a_rewind_it_is_made_again_as_before(block, stores, whole, states, tmp_path):
    """The blocks that were in flight there come back: from the store, or by the passes up to there."""
    store = Store(tmp_path) if stores else None
    made = Sampler(MODEL, store=store).sample(make_rolling(), BLOCKS)
    computed: list[Pass] = []
    sampler = Sampler(MODEL, store=store, watch=computed.append)
    back = made.rewound_to(3 * block)
    assert back.lacks_in_flight == (block > 0)
    longer = sampler.sample(back, 1)
    assert_same(longer, next(state for state in states if len(state.blocks) == block + 1))
    joint = sum(done.kind is PassKind.DENOISE for done in computed)
    assert joint == (0 if stores else 5 + block)
    assert_same(finish(Sampler(MODEL).sample(back, BLOCKS - block)), whole)


def test_law_3_a_rewound_video_from_a_file_is_made_again_as_before(whole, tmp_path):
    save_session(whole, tmp_path / "session")
    back = load_session(tmp_path / "session").rewound_to(12)
    assert_same(finish(Sampler(MODEL).sample(back, BLOCKS - 4)), whole)


@pytest.mark.parametrize("boundary", list(Boundary))
def test_law_4_a_switch_blends_the_blocks_in_flight_and_leaves_what_is_finished(boundary, whole):
    sampler = Sampler(MODEL)
    trunk = sampler.sample(make_rolling(), 7)
    switched = sampler.sample(trunk.switched_to(tiny.prompt(1), boundary), 5)
    again = Sampler(MODEL).sample(trunk.switched_to(tiny.prompt(1), boundary), 5)
    assert_same(switched, again)
    assert torch.equal(switched.frames(0, 21), whole.frames(0, 21))
    assert not torch.equal(switched.frames(21, 3), whole.frames(21, 3))
    assert_same(finish(sampler.sample(trunk, BLOCKS - 7)), whole)


def test_law_4_an_edit_recomputes_from_the_pass_that_sees_it(tmp_path):
    computed, store = [], Store(tmp_path)

    def make_ending(number: int) -> Session:
        sampler = Sampler(MODEL, store=store, watch=lambda done: computed.append((done.kind, done.place.start)))
        video = sampler.sample(make_rolling(), 8)
        return sampler.sample(video.switched_to(tiny.prompt(number), blend=Blend(2)), 3)

    first = make_ending(1)
    computed.clear()
    second = make_ending(2)
    assert torch.equal(first.frames(0, 24), second.frames(0, 24))
    assert not torch.equal(first.frames(24, 3), second.frames(24, 3))
    assert sorted(start for kind, start in computed if kind is PassKind.DENOISE) == [24, 27, 30]
    computed.clear()
    assert_same(make_ending(1), first)
    assert computed == []


def test_the_four_blocks_in_flight_blend_and_the_fifth_is_the_first_that_sees_only_the_new_prompt(monkeypatch):
    """Each joint pass has one prompt; so a block is as old as the passes that it had under the old one."""
    prompts: list[tuple[list[int], str]] = []
    read = Sampler._read_prompt

    def read_prompt(sampler: Sampler, prompt: Prompt) -> TextKeys:
        prompts.append(([], prompt.text))
        return read(sampler, prompt)

    def watch(done: Pass) -> None:
        if done.kind is PassKind.DENOISE:
            prompts[-1][0].extend(done.place.start // 3 + number for number in range(len(done.timesteps)))

    monkeypatch.setattr(Sampler, "_read_prompt", read_prompt)
    sampler = Sampler(MODEL, watch=watch)
    video = sampler.sample(make_rolling(), 6).switched_to(tiny.prompt(1), Boundary.KEEP)
    sampler.sample(video, 6)
    under_new = [sum(block in blocks for blocks, text in prompts if text == "prompt 1") for block in range(12)]
    assert under_new == [0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 5]


def test_law_6_work_and_memory_of_a_block_stay_constant():
    passes: list[tuple[int, int]] = []
    sampler = Sampler(MODEL, watch=lambda done: passes.append((done.place.frames, len(done.place.attended_slots))))
    video = sampler.sample(make_rolling(), 9)
    held = sampler._rollout.cache.num_bytes
    assert held == count_cache_bytes(MODEL, CONFIG, 16, 32)
    passes.clear()
    sampler.sample(video, 4)
    assert passes == [(3, 21), (15, 6)] * 4
    assert sampler._rollout.cache.num_bytes == held


def test_law_7_an_interrupt_in_any_pass_leaves_a_video_that_goes_on(whole, tmp_path):
    for when in range(1, 22, 4):
        passes = []

        def stop(done: Pass, when=when, passes=passes) -> None:
            passes.append(done)
            if len(passes) == when:
                raise KeyboardInterrupt

        made, sampler = [make_rolling()], Sampler(MODEL, watch=stop)
        with pytest.raises(KeyboardInterrupt):
            made.extend(sampler.extend(made[0], BLOCKS))
        video = made[-1]
        assert sampler._rollout is None
        assert_same(finish(Sampler(MODEL).sample(video, BLOCKS - len(video.blocks))), whole)


@pytest.mark.parametrize("blocks", [1, 2, 4, 5, 6])
def test_a_video_shorter_than_its_steps_is_made_right(blocks):
    """Each block passes every level once, whatever is beside it; the reference begins its last block again."""
    passes: list[Pass] = []
    sampler = Sampler(MODEL, watch=passes.append)
    *_, video = sampler.extend(make_rolling(), blocks, blocks)
    assert (len(video.blocks), video.in_flight, video.ends) == (blocks, None, (3 * blocks,))
    levels: dict[int, list[float]] = {}
    for done in passes:
        if done.kind is PassKind.DENOISE:
            for number, timestep in enumerate(done.timesteps):
                levels.setdefault(done.place.start // 3 + number, []).append(round(timestep, 1))
    assert make_rolling().count_passes(blocks) == sum(done.kind is PassKind.DENOISE for done in passes)
    assert levels == {block: [1000.0, 952.4, 882.4, 769.2, 555.6] for block in range(blocks)}


def test_what_is_in_flight_at_an_end_is_refused_with_the_cure(whole):
    with pytest.raises(SessionError, match=r"rewind to frame 39: .* frame 33 to 45 .*; rewind to frame 33 or before"):
        whole.rewound_to(39)
    assert whole.rewound_to(33).num_frames == 33
    trunk = Sampler(MODEL).sample(make_rolling(), 2)
    with pytest.raises(SessionError, match="would end with 4 blocks, but 6 have begun; make it at least 4 blocks"):
        next(Sampler(MODEL).extend(trunk, 2, 4))
    with pytest.raises(SessionError, match="would end with 4 blocks, but 6 have begun; make it at least 4 blocks"):
        check_timeline(trunk, [Segment("", 1), Segment("", 1)], [4, 4])
    check_timeline(trunk, [Segment("", 1, Boundary.CUT), Segment("", 1)], [4, 4])
    check_timeline(trunk, [Segment("", 1), Segment("", 1, Boundary.CUT)], [None, 4])
    begun = Sampler(MODEL).advance(make_rolling())
    with pytest.raises(SessionError, match="1 blocks have begun and none is finished"):
        begun.switched_to(tiny.prompt(1))


def test_a_cut_drops_what_is_in_flight_and_begins_anew(whole):
    trunk = Sampler(MODEL).sample(make_rolling(), 7)
    cut = trunk.switched_to(tiny.prompt(1), Boundary.CUT)
    assert (cut.in_flight, cut.lacks_in_flight, cut.num_begun) == (None, False, 7)
    assert (trunk.count_passes(3), whole.rewound_to(21).count_passes(3), cut.count_passes(1)) == (3, 3, 5)
    segments = [Segment("", 2), Segment("", 3, Boundary.CUT)]
    assert [count_timeline_passes(trunk, each) for each in (segments, segments[1:], segments[:1])] == [9, 7, 2]
    assert count_timeline_passes(tiny.session(), segments) == 5 * 4
    passes: list[Pass] = []
    Sampler(MODEL, watch=passes.append).sample(cut, 1)
    assert [(done.kind, done.place.start, done.place.frames) for done in passes] == [
        (PassKind.DENOISE, 0, 3 * count) for count in range(1, 6)
    ]
    back = cut.switched_to(tiny.prompt(1), Boundary.KEEP)  # replaces the cut, so the blocks come back
    assert back.lacks_in_flight
    assert_same(
        Sampler(MODEL).sample(back, 2), Sampler(MODEL).sample(trunk.switched_to(tiny.prompt(1), Boundary.KEEP), 2)
    )


def test_nothing_of_a_joint_pass_stays_in_the_cache(monkeypatch):
    """The frames in flight are attended and kept nowhere."""
    written = []
    write = RollingLayerKVCache.write
    monkeypatch.setattr(
        RollingLayerKVCache, "write", lambda cache, place, *rest: written.append(place) or write(cache, place, *rest)
    )
    Sampler(MODEL).sample(make_rolling(), 3)
    assert {len(place.slots) for place in written if place.passing} == {0}
