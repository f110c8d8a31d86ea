"""The command line, from a script to an mp4 and back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from patience import wait_for_end, wait_until
from safetensors.torch import load_file, save_file

from longlive.cli import info
from longlive.cli.main import main, make_parser
from longlive.session import session_file
from longlive.session.session_file import load_session
from longlive.video import writer as video
from longlive.video.render import VideoRenderer

REFERENCE = Path(__file__).parents[2] / "reference"
STORY = "3f | a red fox\n# then\n6f | the red fox runs\n3f cut | the snow\n"

PROGRAM = (
    "import signal, sys; sys.modules['torchvision'] = None; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell starts jobs in the background without it
    "from longlive.cli.main import main; sys.exit(main())"
)


@pytest.fixture
def render(tmp_path, weights, pipeline, monkeypatch):
    """Run `longlive render` on a script into a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def render(script: str, name: str, *more: str) -> int:
        (tmp_path / "story.txt").write_text(script, encoding="utf-8")
        return main([*make_command(tmp_path, weights, pipeline, name), *more])

    return render


def make_command(folder: Path, weights: Path, pipeline: Path, name: str) -> list[str]:
    files = ["--weights", str(weights), "--pipeline", str(pipeline), "-o", str(folder / name)]
    size = ["--width", "48", "--height", "32", "--store", str(folder / "blocks")]
    return ["render", str(folder / "story.txt"), *files, *size, "--device", "cpu", "--dtype", "fp32"]


def count_pixel_frames(path: Path) -> int:
    with av.open(path) as video:
        return sum(1 for _ in video.decode(video=0))


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


def test_the_demo_shows_five_prompts_in_twenty_seconds_and_names_its_recaches(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 0
    assert count_pixel_frames(tmp_path / "demo.mp4") == 4 * 81 - 3
    recaches = [record.message for record in caplog.records if record.message.startswith("recache")]
    assert len(recaches) == 4
    assert "frame 18: a yellow ring moves down at dusk" in recaches[0]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "demo.mp4")
    with av.open(tmp_path / "demo.mp4") as video:
        stream = video.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (16, 384, 384)


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
    from longlive.cli import render
    from longlive.miniature import files

    for name in ("DIT", "VAE"):
        copy = tmp_path / getattr(files, name).name
        shutil.copy(getattr(files, name), copy)
        monkeypatch.setattr(render, name, copy)
    harm(tmp_path / files.VAE.name)
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 1
    assert files.VAE.name in caplog.text
    assert not (tmp_path / "demo.mp4").exists()


def test_released_weights_need_a_pipeline(tmp_path, weights, caplog):
    script = tmp_path / "story.txt"
    script.write_text("3f | a red fox\n")
    assert main(["render", str(script), "--weights", str(weights), "-o", str(tmp_path / "story.mp4")]) == 1
    assert "--pipeline is missing" in caplog.text


def test_info_distinguishes_weights_from_a_session_and_continues_after_neither(render, tmp_path, weights, capsys):
    render("3f | a red fox\n", "first.mp4")
    capsys.readouterr()
    assert main(["info", str(tmp_path / "nothing"), str(weights), str(tmp_path / "first.session.safetensors")]) == 1
    out = capsys.readouterr().out
    assert "Wan2.1" in out
    assert "a LongLive session" in out
    assert "a red fox" in out


def test_verify_exits_with_0_1_or_2(tmp_path, capsys):
    for name in ("lora.safetensors", "weights_causal.safetensors", "scheduler.safetensors"):
        shutil.copy(REFERENCE / name, tmp_path)
    lora, weights, scheduler = (tmp_path / f"{name}.safetensors" for name in ("lora", "weights_causal", "scheduler"))
    assert main(["verify", str(lora), str(scheduler)]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [lora.name, scheduler.name]
    assert main(["verify", str(lora), str(weights)]) == 2
    assert "not a run that can be replayed" in capsys.readouterr().out

    from safetensors import safe_open

    with safe_open(scheduler, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(scheduler)
    tensors["shift5.sigmas"][500] += 1e-3
    save_file(tensors, scheduler, metadata)
    assert main(["verify", str(scheduler), str(lora)]) == 1
    assert "shift5.sigmas differs by 0.001, allowed is 1e-06" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "PIPE", "--miniature", "-o", "a.mp4"],
        ["tune", "PIPE"],
        ["pairs", "request", "PIPE", "-o", "a.jsonl"],
        ["pairs", "request", "STORY", "--template", "PIPE", "-o", "a.jsonl"],
        ["pairs", "read", "STORY", "PIPE", "-o", "a.jsonl"],
        ["evaluate", "PIPE"],
        ["info", "PIPE"],
        ["verify", "PIPE"],
    ],
    ids=" ".join,
)
def test_no_command_waits_for_a_pipe(arguments, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    Path("STORY").write_text('{"id": 1, "prompt": "a boat"}', encoding="utf-8")
    assert main(arguments) != 0
    assert "PIPE" in caplog.text + capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "100000000", "--positions", "unbounded"], "a block may attend 16384 frames at most"),
        (["--window", "100000000"], "absolute positions end at 1024 frames"),
        (["--sink", "100000000"], "window 12 does not hold sink 100000000 and block 3"),
        (["--block", "100000000"], "window 12 does not hold sink 3 and block 100000000"),
        (["--seed", str(2**64)], "seed is 18446744073709551616; it must be from 0 to 18446744073709551615"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to 18446744073709551615"),
        (["--shift", "nan"], "shift is nan; it must be a finite number"),
        (["--context-noise", "inf"], "context_noise is inf; it must be a finite number"),
        (["--steps", *map(str, range(5000, 0, -1))], "they must fall from at most 1000"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_absurd_numbers_are_refused_before_anything_is_made(render, tmp_path, caplog, arguments, message):
    assert render(STORY, "absurd.mp4", *arguments) == 1
    assert message in caplog.text
    assert not (tmp_path / "absurd.mp4").exists()


def test_nothing_from_a_file_controls_the_terminal(render, tmp_path):
    assert render("3f | a red\x1b]0;fox\x07\u202e fox", "story.mp4") == 0
    path = tmp_path / "a\x1b[2Jb.session.safetensors"
    (tmp_path / "story.session.safetensors").rename(path)
    done = subprocess.run(
        [sys.executable, "-m", "longlive", "info", str(path), str(tmp_path / "no\x1b[2Jfile")],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert "a\\x1b[2Jb.session.safetensors: a LongLive session" in done.stdout
    assert "red\\x1b]0;fox\\x07\\u202e fox" in done.stdout
    assert "no\\x1b[2Jfile" in done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr)


def test_sigterm_is_a_ctrl_c(tmp_path, weights, pipeline):
    (tmp_path / "story.txt").write_text("900f | a red fox\n")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = make_command(tmp_path, weights, pipeline, "story.mp4")
    run = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment)
    fragments = tmp_path / "blocks-fragments"
    wait_until(lambda: len([*fragments.rglob("*.safetensors")]) >= 2, run.pid, "two fragments are kept")
    run.send_signal(signal.SIGTERM)
    assert wait_for_end(run, "the end after SIGTERM") == 143
    assert len(load_session(tmp_path / "story.session.safetensors").blocks) >= 2
    assert count_pixel_frames(tmp_path / "story.mp4") >= 9
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_an_interrupt_that_foreign_code_turns_into_another_error_is_one(weights, monkeypatch):
    """Reading a safetensors file does so at some instants."""

    def read(_: Path) -> str:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(info, "describe_path", read)
    assert main(["info", str(weights)]) == 143
    monkeypatch.setattr(info, "describe_path", lambda _: [][0])
    with pytest.raises(IndexError):
        main(["info", str(weights)])


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


def test_without_a_home_folder_nothing_is_cached(weights, monkeypatch, capsys):
    """As for a user of a container without an entry in its list of users."""

    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    for environment in ({"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "/nowhere"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["info", str(weights)]) == 0
        assert make_parser().parse_args(["render", "x", "--miniature", "-o", "x.mp4"]).store in (
            None,
            Path("/nowhere/longlive/blocks"),
        )


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
