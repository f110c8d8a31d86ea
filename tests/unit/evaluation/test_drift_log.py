"""The drift of a video from its fragments: the same pixels wherever it is measured, and rewinds."""

import json

import pytest
import torch
from broken_videos import BLOCK, FRAMES, MIDDLE, SWITCH, render_world_video, skip_block
from tiny import prompt
from tiny import session as start_session

from longlive.evaluation.drift import Fault, SwitchMark
from longlive.evaluation.drift_log import KEPT_APART, KEPT_STATES, DriftLog, mark_switches
from longlive.evaluation.evaluate import open_video
from longlive.session.boundary import Blend, Boundary
from longlive.units import count_pixel_frames
from longlive.video.film import Film
from longlive.video.fragments import Encoding, Fragment, decode_fragment


@pytest.fixture(scope="module")
def fragments():
    """Encode the pixel frames of a video, but for some of them in the middle, block by block."""
    parts = skip_block(render_world_video(0), MIDDLE).split(BLOCK)
    return [Encoding().encode(part_FHW3, BLOCK * number) for number, part_FHW3 in enumerate(parts)]


def test_fragments_decode_to_the_pixels_of_their_film(fragments, tmp_path):
    film = Film.create(tmp_path / "film")
    for fragment in fragments[:4]:
        film.append(fragment)
    with open_video(film.path) as (_, batches):
        whole_FHW3 = torch.cat(list(batches))
    assert torch.equal(torch.cat([decode_fragment(fragment) for fragment in fragments[:4]]), whole_FHW3)
    assert decode_fragment(Fragment(b"", b"", 0)).shape[0] == 0


def test_a_log_finds_the_fault_and_says_so_once(fragments):
    log = DriftLog()
    log.expect([SwitchMark(SWITCH, Boundary.RECACHE)])
    for fragment in fragments:
        log.append(fragment)
    assert log.num_frames == FRAMES - BLOCK
    assert Fault.JUMP in {block.fault for block in log.measured}
    facts = json.loads(json.dumps(log.as_dict()))
    rows = [dict(zip(facts["columns"], row, strict=True)) for row in facts["rows"]]
    assert [row["frame"] for row in rows] == list(range(0, FRAMES - BLOCK, BLOCK))
    assert [row["frame"] for row in rows if row["fault"] == Fault.JUMP] == [MIDDLE // BLOCK * BLOCK]
    assert [row["frame"] for row in rows if row["switch"]] == [SWITCH // BLOCK * BLOCK]
    assert facts["warn"] == log.warnings[-1]
    assert sum("jumps" in warning for warning in log.warnings) == 1


def test_a_rewound_log_goes_on_as_if_nothing_had_followed(fragments):
    log, direct = DriftLog(), DriftLog()
    for fragment in fragments[:15]:
        log.append(fragment)
    log.append(Fragment(b"", b"", 0))
    assert log.warnings
    assert log.rewind(8) == 8
    assert not log.warnings
    for fragment in (*fragments[:8], *fragments[3:5]):
        direct.append(fragment)
    for fragment in fragments[3:5]:
        log.append(fragment)
    assert log.as_dict() == direct.as_dict()


def test_a_long_log_keeps_few_states_and_still_rewinds_far(fragments):
    log, direct = DriftLog(), DriftLog()
    for number in range(3 * KEPT_APART):
        log.append(fragments[number % 2])
    states = len(log._meters)
    assert states <= KEPT_STATES + 3
    kept = log.rewind(KEPT_APART + 5)
    assert kept == KEPT_APART
    for number in range(kept):
        direct.append(fragments[number % 2])
    for each in (log, direct):
        each.append(fragments[5])
    assert log.as_dict() == direct.as_dict()
    assert log.rewind(0) == 0
    assert log.num_frames == 0


def test_a_session_is_marked_where_its_picture_may_change():
    """Not where only the seed or the cache changes, but at each step of a blend and at every cut."""
    session = start_session()
    for number, boundary, blend in (
        (0, Boundary.RECACHE, None),
        (1, Boundary.RECACHE, Blend(2)),
        (1, Boundary.CUT, None),
        (1, Boundary.KEEP, None),
    ):
        session = extend(extend(session)).switched_to(prompt(number), boundary, blend=blend)
    block = session.config.block
    expected = [(4, Boundary.RECACHE), (5, Boundary.RECACHE), (6, Boundary.CUT)]
    assert mark_switches(session) == [(count_pixel_frames(n * block), boundary) for n, boundary in expected]


def extend(session):
    return session.extended_by(torch.zeros(session.block_shape), "key")
