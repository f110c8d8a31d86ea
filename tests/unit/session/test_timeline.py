"""The timeline script: what it reads, what it refuses and where, and that it is written back as it was."""

import json
from pathlib import Path

import pytest
from growth import measure_growth
from twins import NODE, draw_scripts, list_differences, read_in_python

from longlive.errors import TimelineError
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.session.timeline import (
    MAX_CHARACTERS,
    Segment,
    count_blending,
    parse_timeline,
    plan_ends,
    report_timeline,
)
from longlive.units import count_pixel_frames

VECTORS = json.loads((Path(__file__).parents[1].parent / "timeline_vectors.json").read_text(encoding="utf-8"))
READ = [vector for vector in VECTORS if "segments" in vector]
REFUSED = [vector for vector in VECTORS if "error" in vector]


def name(vector):
    return vector["name"]


def make_segment(fields: dict) -> Segment:
    """Make a segment of a vector. Seeds are text in vectors: JavaScript's numbers are exact up to 2 ** 53 only."""
    changes = {"boundary": Boundary(fields["boundary"])}
    if "seed" in fields:
        changes["seed"] = int(fields["seed"])
    if "blend" in fields:
        changes["blend"] = Blend(fields["blend"]["blocks"], Curve(fields["blend"]["curve"]))
    return Segment(**fields | changes)


@pytest.mark.parametrize("vector", READ, ids=name)
def test_script_is_read(vector):
    assert parse_timeline(vector["script"], vector["block"]) == tuple(map(make_segment, vector["segments"]))


@pytest.mark.parametrize("vector", REFUSED, ids=name)
def test_script_is_refused_with_its_place(vector):
    with pytest.raises(TimelineError) as refusal:
        parse_timeline(vector["script"], vector["block"])
    error = vector["error"]
    assert (refusal.value.line, refusal.value.column) == (error["line"], error["column"])
    assert error["problem"] in refusal.value.problem


def test_report_names_places_counts_and_snapping():
    lines = report_timeline(parse_timeline("8s | a\n7.5s cut | b\n30f renew | c")).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        "1 0.00 8.25 11 33 129 start 8s asked, 11 blocks = 8.25 s".split(),
        "2 8.25 15.75 10 30 120 cut 7.5s asked, 10 blocks = 7.5 s".split(),
        "3 15.75 23.25 10 30 120 renew 30f asked, 10 blocks = 7.5 s".split(),
    ]
    assert lines[4:] == [f"total: 31 blocks; the video is 93 frames, {4 * 93 - 3} pixel frames, 23.06 s long"]


def test_pixel_frames_of_the_segments_sum_to_the_video():
    rows = report_timeline(parse_timeline("1b | a\n2b | b\n3b | c")).splitlines()[1:4]
    assert sum(int(row.split()[5]) for row in rows) == count_pixel_frames(18)


def test_report_continues_a_video():
    first, total = report_timeline(parse_timeline("3s cut | a"), before=9).splitlines()[1:]
    assert first.split()[:7] == "1 2.25 5.25 4 12 48 cut".split()
    assert total == "total: 4 blocks; the video is 21 frames, 81 pixel frames, 5.06 s long"


def test_boundary_before_the_first_frame_is_reported_as_ignored():
    segments = parse_timeline("8s cut | a\n8s cut | b")
    assert (
        report_timeline(segments).splitlines()[-1] == "note: 'cut' on segment 1 has no effect: the video begins there"
    )
    assert "note" not in report_timeline(segments, before=3)
    assert "note" not in report_timeline(parse_timeline("8s | a"))


ENDS = [
    ("3b | a\n4b keep | b\n5b renew | c", 0, [12, 12, 12]),
    ("3b | a\n4b | b", 6, [13, 13]),
    ("3b | a\n4b cut | b\n5b | c", 2, [None, 14, 14]),
    ("3b | a\n4b | b\n5b cut | c\n6b cut | d", 0, [None, None, None, 18]),
    ("3b cut | a\n4b | b", 6, [13, 13]),
]


@pytest.mark.parametrize(("script", "before", "ends"), ENDS, ids=[script for script, *_ in ENDS])
def test_a_rolling_video_ends_with_its_script_and_a_segment_before_a_cut_has_no_end(script, before, ends):
    assert plan_ends(parse_timeline(script), before) == ends


def test_report_counts_the_blocks_that_blend():
    segments = parse_timeline("5b | a\n2b keep | b\n6b blend 2b | c\n4b cut | d\n9b | e")
    blending = count_blending(segments, begun=0, num_in_flight=4)
    assert blending == [0, 2, 4, 0, 4]
    assert count_blending(segments, begun=3, num_in_flight=4) == [3, 2, 4, 0, 4]
    assert count_blending(parse_timeline("5b cut | a"), begun=4, num_in_flight=4) == [0]
    assert count_blending(segments, begun=0, num_in_flight=0) == []
    lines = report_timeline(segments, blending=blending).splitlines()
    assert lines[0].split() == "segment from to blocks frames pixel frames blending boundary duration".split()
    assert lines[2].split() == "2 3.75 5.25 2 6 24 2 keep 2b asked, 2 blocks = 1.5 s".split()
    assert lines[-1].endswith("had begun under the prompt before it; later ones follow its own")
    assert "note" not in report_timeline(segments[:1], blending=[0])


def test_one_block_is_written_as_one():
    lines = report_timeline(parse_timeline("1b | a")).splitlines()
    assert lines[1].endswith("1b asked, 1 block = 0.75 s")
    assert lines[2].startswith("total: 1 block; ")


def test_a_script_has_a_largest_size_in_code_points():
    script = "8s | ".ljust(MAX_CHARACTERS, "🚣")
    assert len(parse_timeline(script)[0].prompt) == MAX_CHARACTERS - 5
    with pytest.raises(TimelineError, match="line 1, column 1: the script has 200001 characters; 200000 at most are"):
        parse_timeline(script + "🚣")


@pytest.mark.skipif(not NODE, reason="needs Node.js")
def test_both_parsers_make_the_same_of_every_script():
    scripts = [(vector["script"], vector["block"]) for vector in VECTORS]
    scripts += [(script, 3) for script in LONG_SCRIPTS]
    scripts += draw_scripts(seed=0, count=3000)
    assert list_differences(scripts) == []


SHAPES = {
    "digits": lambda n: "1b | a\n " + "1" * n,
    "digits at the margin": lambda n: "1" * n,
    "digits with a unit": lambda n: "1" * n + "b | a",
    "decimals": lambda n: "1b | a\n 1." + "0" * n,
    "dots": lambda n: "1b | a\n 1" + "." * n,
    "spaces behind a number": lambda n: "1b | a\n 1" + " " * n + "x",
    "spaces behind a unit": lambda n: "1b | a\n 1b" + " " * n + "!",
    "spaces within a prompt": lambda n: "1b | a" + " " * n + "b",
    "spaces within a line": lambda n: "1b | a\n  b" + "\u3000" * n + "c",
    "a long unit": lambda n: "8" + "s" * n,
    "a long boundary": lambda n: "1b | a\n 8s " + "k" * n,
    "a long boundary at the margin": lambda n: "8s " + "recahce" * (n // 7) + " | a",
    "a long blend": lambda n: "1b | a\n 8s blend " + "3" * n,
    "a long seed": lambda n: "1b | a\n 8s seed " + "0" * n + "x",
    "a long seed at the margin": lambda n: "8s seed " + "0" * n + "7 | a",
    "words": lambda n: "8s " + "a " * (n // 2) + "| a",
    "bars": lambda n: "8s " + "|" * n,
    "lookalikes": lambda n: "8s" + " " * n + "｜",
    "continuation lines": lambda n: "8s | a\n" + " b\n" * (4 * n),  # cheap each
    "segments": lambda n: "1b|a\n" * (n // 5),
    "comments": lambda n: "#\n" * (n // 2),
    "line ends": lambda n: "\r" * n,
    "boats": lambda n: "8s " + "🚣" * n + " | a",
}
LONG_SCRIPTS = [make(2000) for make in SHAPES.values()]


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_time_to_read_a_script_grows_with_its_length(make):
    """Four times the text takes four times as long, sixteen times where every part is tried with every other."""
    assert measure_growth(lambda script: read_in_python(script, 3), make(4_000), make(16_000)) < 10
