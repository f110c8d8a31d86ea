"""`longlive render`: from a script to a video and a session, interrupted, continued and refused."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from patience import wait_for_end, wait_until
from render_runs import PROGRAM, STORY, count_pixel_frames, make_command
from safetensors.torch import load_file, save_file

from longlive.cli.main import main
from longlive.session import session_file
from longlive.session.session_file import load_session
from longlive.video import writer as video
from longlive.video.render import VideoRenderer


def test_a_script_becomes_a_video_and_a_session(render, tmp_path, capsys):
    assert render(STORY, "story.mp4") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'story.mp4'}\n"
    assert count_pixel_frames(tmp_path / "story.mp4") == 4 * 12 - 3
    session = load_session(tmp_path / "story.session.safetensors")
    assert [switch.frame for switch in session.switches] == [0, 3, 9]
    assert [switch.prompt.text for switch in session.switches] == ["a red fox", "the red fox runs", "the snow"]


def test_a_session_continues_as_if_it_had_never_ended(render, tmp_path):
    assert render("3f | a red fox\n3f | the red fox runs\n", "whole.mp4") == 0
    assert render("3f | a red fox\n", "first.mp4", "--store", str(tmp_path / "other")) == 0
    more = ["--session", str(tmp_path / "first.session.safetensors"), "--store", str(tmp_path / "another")]
    assert render("3f | the red fox runs\n", "second.mp4", *more) == 0
    whole, second = (load_session(tmp_path / f"{name}.session.safetensors") for name in ("whole", "second"))
    assert torch.equal(whole.latents(), second.latents())
    assert count_pixel_frames(tmp_path / "second.mp4") == 4 * 6 - 3


def test_a_session_of_other_weights_is_refused(render, tmp_path, weights, caplog):
    assert render("3f | a red fox\n", "first.mp4") == 0
    other = shutil.copy(weights, tmp_path / "other.safetensors")
    state = load_file(other)
    save_file({**state, "head.head.bias": state["head.head.bias"] + 1}, other, {"geometry": '{"num_heads": 2}'})
    more = ["--weights", str(other), "--session", str(tmp_path / "first.session.safetensors")]
    assert render("3f | a red fox\n", "second.mp4", *more) == 1
    assert "was made with other weights; give the weights" in caplog.text
    assert not (tmp_path / "second.mp4").exists()


def test_a_broken_script_is_refused_before_anything_is_loaded(render, tmp_path, caplog):
    assert render("3f | a red fox\n8 | no unit\n", "story.mp4") == 1
    assert "TimelineError: line 2, column 2" in caplog.text
    assert list(tmp_path.glob("story.mp4*")) == []


def test_a_video_past_the_table_of_positions_is_refused_before_anything_is_made(render, tmp_path, caplog):
    assert render("400b | a red fox\n", "story.mp4") == 1
    assert "absolute positions end at frame 1024" in caplog.text
    assert list(tmp_path.glob("story.mp4*")) == []


def test_ctrl_c_leaves_a_playable_file_and_a_session_to_continue(tmp_path, weights, pipeline):
    (tmp_path / "story.txt").write_text("900f | a red fox\n")
    blocks = tmp_path / "blocks"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *make_command(tmp_path, weights, pipeline, "story.mp4")], env=environment
    )
    wait_until(lambda: len(list(blocks.rglob("*.safetensors"))) >= 3, run.pid, "three blocks are stored")
    run.send_signal(signal.SIGINT)
    assert wait_for_end(run, "the end after Ctrl-C") == 130

    session = load_session(tmp_path / "story.session.safetensors")
    assert 2 <= len(session.blocks) < 300  # the third may be in the store alone
    assert 0 < count_pixel_frames(tmp_path / "story.mp4") <= session.pixel_frames
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_the_miniature_renders_a_script_and_names_what_it_does_not_know(tmp_path, caplog, capsys):
    script = tmp_path / "story.txt"
    script.write_text("3f | a red fox moves left at night\n")
    rendered = ["render", str(script), "--miniature", "-o", str(tmp_path / "story.mp4"), "--store", str(tmp_path)]
    assert main(rendered) == 0
    assert "'fox' left out of the prompt" in caplog.text
    assert count_pixel_frames(tmp_path / "story.mp4") == 9
    assert main([*rendered, "--width", "128"]) == 1
    assert "the miniature makes 64 x 64 pixels and nothing else, not 128 x 64" in caplog.text


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"?" * 100)], ids=["gone", "damaged"]
)
def test_missing_or_damaged_weights_of_the_miniature_are_named(tmp_path, caplog, monkeypatch, harm):
    from longlive.cli import video_options
    from longlive.miniature import files

    for name in ("DIT", "VAE"):
        copy = tmp_path / getattr(files, name).name
        shutil.copy(getattr(files, name), copy)
        monkeypatch.setattr(video_options, name, copy)
    harm(tmp_path / files.VAE.name)
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 1
    assert files.VAE.name in caplog.text
    assert not (tmp_path / "demo.mp4").exists()


def test_released_weights_need_a_pipeline(tmp_path, weights, caplog):
    script = tmp_path / "story.txt"
    script.write_text("3f | a red fox\n")
    assert main(["render", str(script), "--weights", str(weights), "-o", str(tmp_path / "story.mp4")]) == 1
    assert "--pipeline is missing" in caplog.text


def test_a_finished_video_and_session_survive_a_second_run_that_is_interrupted(render, tmp_path, monkeypatch):
    assert render(STORY, "story.mp4") == 0
    video_path, session = tmp_path / "story.mp4", tmp_path / "story.session.safetensors"
    before = video_path.read_bytes(), session.read_bytes()
    shutil.rmtree(tmp_path / "blocks")
    shutil.rmtree(tmp_path / "blocks-fragments")
    render_block, rendered = VideoRenderer.render_block, []

    def interrupted(self, latents):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(latents)
        render_block(self, latents)

    monkeypatch.setattr(VideoRenderer, "render_block", interrupted)
    assert render(STORY, "story.mp4") == 130
    assert (video_path.read_bytes(), session.read_bytes()) == before


def test_a_session_that_cannot_be_saved_does_not_cost_the_video(render, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session_file, "write_tensor_file", full)
    assert render("3f | a red fox\n", "story.mp4") == 1
    assert "StoreError: the session cannot be written" in caplog.text
    assert count_pixel_frames(tmp_path / "story.mp4") == 9

    monkeypatch.setattr(video, "remux", full)
    assert render("6f | a red fox\n", "other.mp4") == 1
    assert "VideoError" in caplog.text  # neither error hides the other
    assert caplog.text.index("VideoError") < caplog.text.rindex("StoreError")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(render, tmp_path, caplog):
    (tmp_path / "folder.mp4").mkdir()
    assert render(STORY, "folder.mp4") == 1
    assert "is a folder; give the name of a file" in caplog.text
    assert render(STORY, "nowhere/story.mp4") == 1
    assert "there is no folder" in caplog.text
    assert not (tmp_path / "blocks").exists()


def test_a_file_in_the_place_of_the_session_is_refused_before_anything_is_computed(render, tmp_path, caplog):
    (tmp_path / "story.session.safetensors").write_text("mine")
    assert render(STORY, "story.mp4") == 1
    assert "is not a saved session" in caplog.text
    assert not (tmp_path / "blocks").exists()


def test_a_video_resumed_after_an_interrupt_is_the_uninterrupted_one_to_the_byte(render, tmp_path):
    assert render("6f | a red fox\n", "story.mp4") == 0
    assert render(STORY.replace("3f | a red fox", "6f | a red fox"), "story.mp4") == 0
    stores = "--store", str(tmp_path / "other")
    assert render(STORY.replace("3f | a red fox", "6f | a red fox"), "whole.mp4", *stores) == 0
    assert (tmp_path / "story.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
