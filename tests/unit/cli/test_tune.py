"""`longlive tune`: interrupts, and what a resumed tuning must have in common with its beginning."""

import json
import shutil
import signal

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from longlive.cli import tune
from longlive.cli.main import main
from longlive.tuning.run import ADAPTER_FILE


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """A shell starts jobs in the background without Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_tuning_finishes_its_step(tmp_path, monkeypatch, number, status):
    (tmp_path / "tune.toml").write_text("[model]\nminiature = true\n[learn]\nrank = 1\n")
    finished = []

    def run_one_step(trainer, folder, *, watch):
        signal.raise_signal(number)
        finished.append("step")
        watch(1, {})
        finished.append("another step")

    monkeypatch.setattr(tune, "run_tuning", run_one_step)
    AcceleratorState._reset_state(True)
    assert main(["tune", str(tmp_path / "tune.toml"), "--folder", str(tmp_path)]) == status
    assert finished == ["step"]


def test_a_second_interrupt_stops_a_tuning_at_once(tmp_path, monkeypatch):
    (tmp_path / "tune.toml").write_text("[model]\nminiature = true\n[learn]\nrank = 1\n")

    def begin_step(trainer, folder, *, watch):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(tune, "run_tuning", begin_step)
    AcceleratorState._reset_state(True)
    assert main(["tune", str(tmp_path / "tune.toml"), "--folder", str(tmp_path)]) == 130


TINY_TUNING = """
[model]
weights = "{weights}"
teacher = "teacher.safetensors"
pipeline = "{pipeline}"
[data]
prompts = "prompts.txt"
width = 48
height = 32
[stream]
length = 21
[learn]
rank = 1
precision = "fp32"
[run]
steps = 1
"""


def test_a_tuning_is_resumed_with_the_files_it_had_wherever_they_are(tmp_path, weights, pipeline, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tune.toml").write_text(TINY_TUNING.format(weights=weights, pipeline=pipeline))
    (tmp_path / "prompts.txt").write_text("a red fox\n")
    shutil.copy(weights, tmp_path / "teacher.safetensors")

    def run_tune() -> int:
        AcceleratorState._reset_state(True)
        return main(["tune", str(tmp_path / "tune.toml"), "--folder", str(tmp_path / "tuning")])

    assert run_tune() == 0
    assert (tmp_path / "tuning" / ADAPTER_FILE).exists()
    moved = shutil.copy(weights, tmp_path / "moved.safetensors")
    (tmp_path / "tune.toml").write_text(TINY_TUNING.format(weights=moved, pipeline=pipeline))
    assert run_tune() == 0
    state = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(state, tmp_path / "teacher.safetensors", {"geometry": json.dumps({"num_heads": 2})})
    assert run_tune() == 1
    assert "was made with another configuration: model.teacher was" in caplog.text
