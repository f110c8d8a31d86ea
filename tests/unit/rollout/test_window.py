"""The ring and its sink, as integers."""

import pytest

from longlive.rollout.window import Window

SIZES = [(3, 9, 3), (0, 9, 3), (3, 3, 3), (3, 2, 1), (7, 13, 3), (4, 7, 2), (2, 5, 4)]


@pytest.mark.parametrize(("sink", "recent", "block"), SIZES)
def test_a_block_sees_the_sink_and_the_most_recent_frames(sink, recent, block):
    window, held = Window(sink, recent), {}
    for start in range(0, 20 * block, block):
        place = window.place_block(start, block)
        for span in place.spans:
            for i in range(span.count):
                held[span.slot + i] = start + span.frame + i
        end = start + block
        seen = {held[slot] for slot in place.attended_slots}
        assert seen == {frame for frame in range(end) if frame < sink or frame >= end - recent}
        assert [held[slot] for slot in window.list_slots(end)] == sorted(seen)


@pytest.mark.parametrize(("sink", "recent", "block"), SIZES)
def test_a_recache_rewrites_what_the_paper_and_the_reference_rewrite(sink, recent, block):
    window = Window(sink, recent)
    for end in range(block, 20 * block, block):
        kept, renewed = (window.place_recache(end, renew=renew) for renew in (False, True))
        everything = set(range(min(end, window.size)))
        assert renewed.slots == everything
        assert kept.slots == (everything if end <= window.size else everything - set(range(sink)))
        assert kept.start + kept.frames == renewed.start + renewed.frames == end


def test_a_whole_recache_passes_the_dead_queries_too_and_stores_the_same():
    window = Window(3, 9)
    lean, whole = window.place_recache(30, renew=False), window.place_recache(30, renew=False, whole=True)
    assert (lean.start, lean.frames, whole.start, whole.frames) == (21, 9, 18, 12)
    assert lean.slots == whole.slots


def test_a_sink_larger_than_a_block_is_written_until_it_is_full():
    """The reference write-protects such a sink after the first, noisy pass of its later frames."""
    window = Window(3, 3)
    assert [window.place_block(frame, 1).slots for frame in range(3)] == [{0}, {1}, {2}]
