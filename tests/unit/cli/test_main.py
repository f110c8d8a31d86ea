"""The commands: demo, info and verify, and what holds for all of them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
from patience import wait_for_end, wait_until
from render_runs import PROGRAM, STORY, count_pixel_frames, make_command
from safetensors.torch import load_file, save_file

from longlive.cli import info
from longlive.cli.main import main, make_parser
from longlive.session.session_file import load_session

REFERENCE = Path(__file__).parents[2] / "reference"


def test_the_demo_shows_five_prompts_in_twenty_seconds_and_names_its_recaches(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 0
    assert count_pixel_frames(tmp_path / "demo.mp4") == 4 * 81 - 3
    recaches = [record.message for record in caplog.records if record.message.startswith("recache")]
    assert len(recaches) == 4
    assert "frame 21: a yellow ring moves down at dusk" in recaches[0]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "demo.mp4")
    with av.open(tmp_path / "demo.mp4") as video:
        stream = video.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (16, 384, 384)


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


@pytest.mark.parametrize(("caches", "store"), [("", None), ("/nowhere", Path("/nowhere/longlive/blocks"))])
def test_a_user_without_a_home_folder_has_a_store_only_where_one_is_named(monkeypatch, caches, store):
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", caches)
    assert make_parser().parse_args(["render", "x", "--miniature", "-o", "x.mp4"]).store == store
