"""Checkpoints: a tuning that stops at any moment loses nothing, and what does not fit is refused."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tuning
import torch
from patience import wait_until
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.errors import TuningError
from longlive.tuning import checkpoints
from longlive.tuning.run import ADAPTER_FILE, METRICS_FILE, run_tuning

PROGRAM = Path(__file__).parents[1] / "tiny_tuning.py"


def find_newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()), default=0)


def test_law_a_tuning_killed_at_random_steps_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = tiny_tuning.make_trainer()
    run_tuning(whole, tmp_path / "whole")
    draw, folder = random.Random(0), tmp_path / "killed"
    for step in sorted(draw.sample(range(1, tiny_tuning.CONFIG.run.steps), 3)):
        process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder), "6", "none"])
        wait_until(lambda step=step: find_newest_step(folder) >= step, process.pid, f"step {step} is saved")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resumed = tiny_tuning.make_trainer()
    run_tuning(resumed, folder)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert (folder / ADAPTER_FILE).read_bytes() == (tmp_path / "whole" / ADAPTER_FILE).read_bytes()
    assert len(list((folder / "checkpoints").iterdir())) == tiny_tuning.CONFIG.run.keep


def test_a_loss_of_nan_stops_the_tuning_and_keeps_the_checkpoint(tmp_path):
    trainer = tiny_tuning.make_trainer()
    with pytest.raises(KeyboardInterrupt):
        run_tuning(trainer, tmp_path, watch=stop_at(2))
    weight = trainer.parts.critic.get_parameter("patch_embedding.weight")
    weight.data.fill_(torch.nan)
    with pytest.raises(
        TuningError, match=r"the student's loss is nan at step 3; the last checkpoint and its adapter are good"
    ):
        run_tuning(trainer, tmp_path)
    assert all(torch.isfinite(value).all() for value in trainer.tuned_weights.values())
    resumed = tiny_tuning.make_trainer()
    assert checkpoints.Checkpoints(resumed, tmp_path).resume()
    assert resumed.num_steps == 2


def stop_at(step: int):
    def watch(now: int, _) -> None:
        if now == step:
            raise KeyboardInterrupt

    return watch


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path):
    run_tuning(tiny_tuning.make_trainer(tiny_tuning.with_run(steps=1)), tmp_path)
    message = r"learn\.rank was 4 and is 2; restore the old values, or tune in another folder"
    with pytest.raises(TuningError, match=message):
        run_tuning(tiny_tuning.make_trainer(tiny_tuning.with_learn(rank=2)), tmp_path)


def test_a_longer_run_has_the_same_configuration(tmp_path):
    run_tuning(tiny_tuning.make_trainer(tiny_tuning.with_run(steps=1)), tmp_path)
    longer = tiny_tuning.make_trainer(tiny_tuning.with_run(steps=2, keep=1))
    run_tuning(longer, tmp_path)
    assert longer.num_steps == 2


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    trainer = tiny_tuning.make_trainer()
    with pytest.raises(KeyboardInterrupt):
        run_tuning(trainer, tmp_path, watch=stop_at(1))
    before = sorted(tmp_path.rglob("*"))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_tensor_file", refuse)
    with pytest.raises(TuningError, match=r"No space left on device; free some space; .*000001 is good"):
        run_tuning(trainer, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_another_process_cannot_write_ends_this_process_too(two_checkpoints, monkeypatch):
    """Otherwise this process would wait for the other one without end."""
    trainer = tiny_tuning.make_trainer()
    saved = checkpoints.Checkpoints(trainer, two_checkpoints.parent)
    assert saved.resume()
    before = sorted(two_checkpoints.rglob("*"))
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda failed, how: failed + 1)
    with pytest.raises(TuningError, match="another process of this tuning failed; its message says why"):
        saved.save()
    assert sorted(two_checkpoints.rglob("*")) == before


def test_a_metrics_log_that_cannot_be_written_loses_no_step(tmp_path):
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_run(save_every=100))

    def break_log(step, _):
        (tmp_path / METRICS_FILE).unlink()
        (tmp_path / METRICS_FILE).mkdir()

    with pytest.raises(TuningError, match=r"curve\.jsonl cannot be written: Is a directory; free some space"):
        run_tuning(trainer, tmp_path, watch=break_log)
    assert find_newest_step(tmp_path) == 2


def test_a_folder_that_cannot_be_made_is_a_tuning_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match=r"folder .*tuning cannot be made: Not a directory"):
        run_tuning(tiny_tuning.make_trainer(), tmp_path / "file" / "tuning")


def test_a_folder_of_other_files_among_the_checkpoints_is_neither_resumed_nor_removed(two_checkpoints):
    """As a tuning of the name a/checkpoints/000001 would be for the tuning a."""
    other = two_checkpoints / "000004" / ADAPTER_FILE
    other.parent.mkdir()
    other.write_bytes(b"mine")
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_run(steps=4, keep=1))
    with pytest.raises(TuningError, match=r"no checkpoint could be written to .*000004"):
        run_tuning(trainer, two_checkpoints.parent)
    assert other.read_bytes() == b"mine"
    assert find_newest_step(two_checkpoints.parent) == 4


@pytest.mark.parametrize("name", ["000002", "000009", "000009/mine"])
def test_a_tuning_among_the_checkpoints_of_another_is_refused(two_checkpoints, name):
    with pytest.raises(TuningError, match="is a place for checkpoints of another tuning; choose another"):
        run_tuning(tiny_tuning.make_trainer(), two_checkpoints / name)


def test_a_damaged_checkpoint_is_named(tmp_path):
    run_tuning(tiny_tuning.make_trainer(tiny_tuning.with_run(steps=1)), tmp_path)
    (tmp_path / "checkpoints" / "000001" / "process0.safetensors").write_bytes(b"torn")
    with pytest.raises(TuningError, match=r"000001 is damaged .*; delete that folder to continue from the one before"):
        run_tuning(tiny_tuning.make_trainer(), tmp_path)


@pytest.fixture(scope="module")
def tuned_folder(tmp_path_factory) -> Path:
    """The folder of a tuning after two steps."""
    folder = tmp_path_factory.mktemp("tuned")
    run_tuning(tiny_tuning.make_trainer(tiny_tuning.with_run(steps=2)), folder)
    return folder


@pytest.fixture
def two_checkpoints(tmp_path, tuned_folder) -> Path:
    """A folder with checkpoints of the first two steps."""
    shutil.copytree(tuned_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "it changed after it was saved"),
        ({"longlive_tuning": "5"}, "it changed after it was saved"),
        ({"longlive_tuning": "5", "longlive_digest": None}, "its configuration is not an object"),
        ({"longlive_tuning": "{", "longlive_digest": None}, "Expecting"),
        ({"longlive_tuning": "[" * 100_000, "longlive_digest": None}, "it is nested deeper"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_checkpoint_that_changed_is_refused(two_checkpoints, metadata, reason):
    path = two_checkpoints / "000002" / "process0.safetensors"
    with safe_open(path, "pt") as file:
        found = file.metadata() | metadata
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {name: value for name, value in found.items() if value is not None})
    message = f"000002 is damaged .{reason}.*; delete that folder to continue from the one"
    with pytest.raises(TuningError, match=message):
        run_tuning(tiny_tuning.make_trainer(), two_checkpoints.parent)


@pytest.mark.parametrize("name", ["²", "٣", "000009", "notes"])
def test_a_folder_that_is_not_a_checkpoint_is_skipped(two_checkpoints, name):
    (two_checkpoints / name).mkdir()
    resumed = tiny_tuning.make_trainer()
    assert checkpoints.Checkpoints(resumed, two_checkpoints.parent).resume()
    assert resumed.num_steps == 2


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_pipe_is_refused_as_a_checkpoint(two_checkpoints):
    path = two_checkpoints / "000002" / "process0.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TuningError, match="it is a pipe, not a file"):
        checkpoints.Checkpoints(tiny_tuning.make_trainer(), two_checkpoints.parent).resume()
