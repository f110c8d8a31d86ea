"""Measures of any video, from a file."""

from pathlib import Path

import pytest
import torch

from longlive.cli.main import main
from longlive.errors import EvaluationError, ScriptError
from longlive.evaluation.evaluate import (
    evaluate_video,
    measure_consistency,
    measure_discontinuity,
    read_features,
    split_spans,
)
from longlive.miniature.clips import choose_clip, seed_random
from longlive.miniature.evaluation.words import evaluate_world_video
from longlive.miniature.world import render_clips
from longlive.session.timeline import Segment, parse_timeline
from longlive.units import count_pixel_frames
from longlive.video.writer import VideoWriter

LATENTS = 12  # before and after the switch


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A clip of the world with a switch, as a file as large as the world and as one enlarged; and its segments."""
    clip = choose_clip(seed_random("evaluate", 1), (count_pixel_frames(LATENTS),))
    pixels, _ = render_clips([clip], count_pixel_frames(2 * LATENTS))
    folder = tmp_path_factory.mktemp("world")
    for name, video in (("world", pixels[0]), ("large", pixels[0].repeat_interleave(2, 2).repeat_interleave(2, 3))):
        write(folder / f"{name}.mp4", video)
    segments = parse_timeline("\n".join(f"{LATENTS}f | {scene}" for _, scene in clip.scenes))
    return folder, segments


def write(path, pixels_FCHW):
    with VideoWriter(path) as writer:
        writer.write(pixels_FCHW)
    return path


def draw_picture(frames: int, rows: int = 32, columns: int = 48) -> torch.Tensor:
    """Draw a video without motion."""
    coarse = torch.rand(1, 3, rows // 8, columns // 8, generator=torch.Generator().manual_seed(0))
    return (1.6 * torch.nn.functional.interpolate(coarse, (rows, columns)) - 0.8).expand(frames, -1, -1, -1)


def read_rows(report, title: str) -> list[dict]:
    return next(table.as_dict()["rows"] for table in report.tables if table.title == title)


def test_a_still_video_is_consistent_and_does_not_drift(tmp_path):
    report = evaluate_video(write(tmp_path / "still.mp4", draw_picture(33)))
    (segment,) = read_rows(report, "Segments")
    assert segment["consistency"] > 0.999
    assert segment["discontinuity"] is None
    assert segment["to, s"] == pytest.approx(33 / 16)
    assert all(abs(row["drift"]) < 0.5 for row in read_rows(report, "Drift"))


def test_a_grey_video_is_consistent_too(tmp_path):
    (row,) = read_rows(evaluate_video(write(tmp_path / "grey.mp4", torch.zeros_like(draw_picture(33)))), "Segments")
    assert row["consistency"] == 1


def test_a_video_that_fades_to_grey_drifts_in_contrast_saturation_and_sharpness(tmp_path):
    fading = draw_picture(48) * torch.linspace(1, 0.3, 48).view(-1, 1, 1, 1)
    drift = {
        row["of 255"]: row["drift"]
        for row in read_rows(evaluate_video(write(tmp_path / "fading.mp4", fading)), "Drift")
    }
    assert drift["contrast"] < -10
    assert drift["saturation"] < -20
    assert drift["sharpness"] < -1
    assert abs(drift["brightness"]) < 15


def test_a_cut_is_a_discontinuity_and_a_pan_is_none(tmp_path):
    pan = torch.stack([draw_picture(1)[0].roll(i, -1) for i in range(40)])
    features = read_features(write(tmp_path / "pan.mp4", pan))
    assert measure_discontinuity(features, 21) == pytest.approx(1, abs=0.3)
    features = read_features(write(tmp_path / "cut.mp4", torch.cat([pan[:21], -pan[21:]])))
    assert measure_discontinuity(features, 21) > 5
    (span,) = split_spans((), features.num_frames)
    assert measure_consistency(features, span) < 0.5


def test_segments_begin_where_their_latents_do():
    spans = split_spans([Segment("one", 4), Segment("two", 1), Segment("three", 2)], 81)
    assert [(span.first, span.end, span.prompt) for span in spans] == [
        (0, 45, "one"),
        (45, 57, "two"),
        (57, 81, "three"),
    ]


def test_a_script_of_another_length_is_refused():
    with pytest.raises(ScriptError, match=r"makes 9 pixel frames, but the video has 10; give the whole script"):
        split_spans([Segment("one", 1)], 10)


@pytest.mark.parametrize("name", ["world", "large"])
def test_a_clip_of_the_world_shows_every_word_even_when_compressed(world, name):
    folder, segments = world
    rows = read_rows(evaluate_world_video(folder / f"{name}.mp4", segments), "Words that are shown")
    assert len(rows) == 2
    for row in rows:
        assert [row[word] for word in ("colour", "shape", "motion", "background")] == [1, 1, 1, 1]
    assert rows[0]["jump, px"] is None
    assert rows[1]["jump, px"] < 2.5  # of what moves 1; H.264 halves the rows and columns of colours


def test_words_are_looked_for_only_in_prompts_of_the_world(world):
    folder, segments = world
    others = [Segment("a red fox", segment.blocks) for segment in segments]
    for known in ((), others):
        assert [table.title for table in evaluate_world_video(folder / "world.mp4", known).tables] == [
            "Segments",
            "Drift",
            "Blocks",
        ]


def test_a_file_that_is_not_a_video_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"missing\.mp4 cannot be read as a video: .*; give one that plays"):
        evaluate_video(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(EvaluationError, match=r"text\.mp4 cannot be read as a video"):
        evaluate_video(tmp_path / "text.mp4")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.0,\nworld.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile world.mp4\n"),
    ],
)
def test_a_playlist_of_other_files_is_refused(world, name, text):
    folder, _ = world
    (folder / name).write_text(text)
    with pytest.raises(EvaluationError, match="cannot be read as a video"):
        evaluate_video(folder / name)


def test_a_name_with_a_colon_is_a_file_and_not_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "12:30.mp4", draw_picture(5))
    assert read_features(Path("12:30.mp4")).num_frames == 5


def test_the_command_prints_the_report_and_writes_it_where_asked(world, tmp_path, capsys):
    folder, segments = world
    (tmp_path / "script.txt").write_text("\n".join(f"{segment.asked} | {segment.prompt}" for segment in segments))
    script, output = ["--script", str(tmp_path / "script.txt")], ["-o", str(tmp_path / "report")]
    assert main(["evaluate", str(folder / "world.mp4"), *script, *output]) == 0
    assert capsys.readouterr().out == (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "report.json").exists()


@pytest.mark.parametrize("arguments", [[], ["clip.mp4", "--miniature"]])
def test_the_command_takes_a_video_or_the_miniature(arguments):
    with pytest.raises(SystemExit):
        main(["evaluate", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["evaluate", "clip.mp4", "--seeds", "4"],
            "--seeds, --lora, --rolling, --weights and --blends belong to --miniature",
        ),
        (["evaluate", "--miniature", "--clip", "clip"], "--script and --clip belong to a video"),
        (
            ["render", "demo.txt", "--miniature", "--pipeline", "wan", "-o", "demo.mp4"],
            "--pipeline belongs to real weights",
        ),
        (
            ["render", "demo.txt", "--miniature", "--strength", "0.5", "-o", "demo.mp4"],
            "--strength belongs to --lora",
        ),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments, sentence, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.txt").write_text("1s | a red ring moves left at night")
    assert main(arguments) == 1
    assert sentence in caplog.text
