"""`longlive live`: lines come through a pipe, the video is that of its script, and whatever they hold, it is kept."""

import json
import os
import sys
import threading

import pytest
from render_runs import count_pixel_frames, make_command

from longlive.cli import live
from longlive.cli.live import VIEWER, PlayingViewer, read_lines
from longlive.cli.main import main
from longlive.live.inbox import Inbox
from longlive.live.messages import MAX_MESSAGE_BYTES, Playhead
from longlive.rollout.sampler import Sampler
from longlive.session.session_file import load_session

BLOCK_SECONDS = 0.75


@pytest.fixture
def direct(tmp_path, weights, pipeline, monkeypatch):
    """Run `longlive live` with the lines of a pipe, and return its exit status."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def direct(lines: bytes, *more: str, name: str = "film.mp4") -> int:
        command = ["live", *make_command(tmp_path, weights, pipeline, name)[2:], *more]
        reading, writing = os.pipe()
        thread = threading.Thread(target=write_all, args=(writing, lines))
        thread.start()
        with open(reading) as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            status = main(command)
            thread.join()
        return status

    return direct


def write_all(handle: int, content: bytes) -> None:
    with open(handle, "wb") as file:
        file.write(content)


def say(prompt: str, **fields) -> bytes:
    return json.dumps({"do": "say", "prompt": prompt, **fields}).encode() + b"\n"


STORY = b"a red fox\n" + say("the snow", at=2 * BLOCK_SECONDS, boundary="blend", blend=2, seed=3)
SCRIPT = "2b | a red fox\n2b blend 2b seed 3 | the snow\n"


def test_a_video_is_directed_through_a_pipe_and_its_script_makes_it_again(direct, render, tmp_path):
    assert direct(STORY) == 0
    assert (tmp_path / "film.script.txt").read_text() == SCRIPT
    assert count_pixel_frames(tmp_path / "film.mp4") == 4 * 12 - 3
    assert load_session(tmp_path / "film.session.safetensors").num_frames == 12
    assert not (tmp_path / "film.take").exists()
    assert render(SCRIPT, "again.mp4", "--store", str(tmp_path / "other")) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()


def test_a_directed_rolling_video_is_finished_and_its_script_makes_it_again(direct, render, tmp_path):
    assert direct(STORY, "--kind", "rolling") == 0
    session = load_session(tmp_path / "film.session.safetensors")
    assert session.ends == (session.num_frames,)
    assert count_pixel_frames(tmp_path / "film.mp4") == session.pixel_frames
    script = (tmp_path / "film.script.txt").read_text()
    assert render(script, "again.mp4", "--kind", "rolling", "--store", str(tmp_path / "other")) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()


def test_bad_lines_are_named_and_change_nothing(direct, tmp_path, capsys):
    bad = [b"", b"\xff\xfe", b'{"do": "dance"}', b"{", b"x" * (1 << 20), say("a red fox", style="noir").strip()]
    assert direct(b"\n".join(bad) + b"\n" + STORY + b"{", "--json") == 0
    assert (tmp_path / "film.script.txt").read_text() == SCRIPT
    *events, path = capsys.readouterr().out.splitlines()
    told = [json.loads(event) for event in events]
    errors = [event["error"] for event in told if "error" in event]
    assert [error.split(";")[0][:40] for error in errors] == [
        "a line is not UTF-8 (invalid start byte)",
        "the message cannot be used: do is 'dance",
        "the message is not JSON (Expecting prope",
        "a line has more than 16,384 bytes",
        "the message cannot be used: say has no f",
        "the message is not JSON (Expecting prope",
    ]
    assert [event["status"] for event in told if "status" in event][-1] == "stopped"
    assert path == str(tmp_path / "film.mp4")


def test_an_interrupted_video_is_kept_and_the_same_command_goes_on(direct, render, tmp_path, monkeypatch, caplog):
    extend = Sampler.extend

    def interrupt(sampler, session, blocks, end):
        if len(session.blocks) == 3:
            raise KeyboardInterrupt
        return extend(sampler, session, blocks, end)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "extend", interrupt)
        assert direct(STORY) == 130
    assert "run the same command to continue" in caplog.text
    assert count_pixel_frames(tmp_path / "film.mp4") == count_pixel_frames(tmp_path / "film.take/film.mp4") == 33
    assert (tmp_path / "film.take/script.txt").read_text() == "2b | a red fox\n1b blend 2b seed 3 | the snow\n"
    assert direct(b'{"do": "stop", "at": 3}\n') == 0
    assert (tmp_path / "film.script.txt").read_text() == SCRIPT
    assert not (tmp_path / "film.take").exists()
    assert render(SCRIPT, "again.mp4", "--store", str(tmp_path / "other")) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()


def test_a_take_of_other_weights_is_not_continued(direct, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Sampler, "extend", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert direct(STORY) == 130
    assert direct(STORY, "--seed", "4") == 1
    assert "the take film.take began with another session" in caplog.text


def test_it_begins_with_a_script_and_ends_at_its_largest_length(direct, tmp_path):
    (tmp_path / "begin.txt").write_text("3b | a red fox\n3b cut | the snow\n")
    assert direct(b"", "--script", str(tmp_path / "begin.txt"), "--longest", str(5 * BLOCK_SECONDS)) == 0
    assert (tmp_path / "film.script.txt").read_text() == "3b | a red fox\n2b cut | the snow\n"


def test_without_a_prompt_there_is_no_video(direct, tmp_path, caplog):
    assert direct(b"\n\n") == 0
    assert "no video was written" in caplog.text
    assert not [*tmp_path.glob("film*")]


def test_a_length_of_nothing_is_refused(direct, caplog):
    assert direct(b"", "--longest", "0") == 1
    assert "--longest is 0 s; use more than 0" in caplog.text


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lines_are_read_whole_however_they_come(tmp_path, monkeypatch, size):
    long = b"x" * (MAX_MESSAGE_BYTES + 1)
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\ntwo\r\n" + long + b"\n" + long[1:] + b"\nlast")
    monkeypatch.setattr(live, "INPUT_BYTES", size)
    handle = os.open(path, os.O_RDONLY)
    assert [*read_lines(handle)] == [b"one", b"", b"two\r", None, long[1:], b"last"]
    os.close(handle)


def test_a_viewer_who_watches_is_never_beyond_the_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    inbox, frames = Inbox(), [0]
    viewer = PlayingViewer(inbox, lambda: frames[0])
    places = []
    for passed, num_frames in ((5, 0), (1, 33), (0.5, 33), (9, 33), (0.5, 9)):
        now[0] += passed
        frames[0] = num_frames
        viewer.watch()
        places += [sent.message for sent in inbox.drain()]
    assert places == [Playhead(seconds, VIEWER) for seconds in (0.0, 1.0, 1.5, 33 / 16, 9 / 16)]
