"""A session as a file: it comes back bit for bit, and a disk that refuses leaves the earlier file as it was."""

import stat
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from disks import limit_file_size, read_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_sessions import MODEL, list_content

from longlive.config import Positions, RolloutConfig
from longlive.errors import StoreError
from longlive.rollout.sampler import Sampler
from longlive.session import session_file
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session
from longlive.weights import tensor_file


def test_a_session_comes_back_bit_for_bit(path, video):
    assert list_content(load_session(path)) == list_content(video)


@pytest.mark.parametrize(
    "config",
    [
        RolloutConfig(window=5, sink=3, block=1, steps=(900, 3), shift=8.0, context_noise=5.0),
        RolloutConfig(window=9, sink=0, positions=Positions.UNBOUNDED),
    ],
    ids=str,
)
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_any_settings_and_lengths_come_back(tmp_path, config, blocks):
    video = Sampler(MODEL).sample(tiny.session(config, seed=2**64 - 1), blocks)
    save_session(video, tmp_path / "video")
    assert list_content(load_session(tmp_path / "video")) == list_content(video)


def test_a_session_of_half_precision_and_no_prompt_comes_back(tmp_path):
    fields = {"model": "m", "config": RolloutConfig(), "height": 16, "width": 32, "seed": 0, "channels": 16}
    video = Session.start(dtype=torch.bfloat16, **fields)
    save_session(video, tmp_path / "video")
    assert list_content(load_session(tmp_path / "video")) == list_content(video)


def test_law_3_continuing_what_was_loaded_is_continuing_the_original(path, video):
    ahead = Sampler(MODEL).sample(video, 3)
    assert list_content(Sampler(MODEL).sample(load_session(path), 3)) == list_content(ahead)


def test_a_session_is_one_safetensors_file_with_a_versioned_header(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"format": "longlive.session", "version": "1"}.items()
    assert load_file(path)["latents"].shape == (1, 18, 16, 2, 4)


def test_saving_replaces_the_file_as_a_whole(path, video):
    longer = Sampler(MODEL).sample(video, 1)
    save_session(longer, path)
    assert list_content(load_session(path)) == list_content(longer)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_folders_on_the_way_are_made(tmp_path, video):
    save_session(video, tmp_path / "a" / "b" / "video")
    assert list_content(load_session(tmp_path / "a" / "b" / "video")) == list_content(video)


def test_a_loaded_session_does_not_depend_on_the_file(path, video):
    """On Windows an open file can be neither replaced nor removed: load, continue, save under the same name."""
    loaded = load_session(path)
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert list_content(loaded) == list_content(video)


@pytest.mark.parametrize("num_bytes", [0, 100, 4096])
def test_a_full_disk_is_reported_and_the_old_file_untouched(path, video, num_bytes):
    before = path.read_bytes()
    with (
        limit_file_size(num_bytes),
        pytest.raises(StoreError, match=r"cannot be written to .*video.safetensors.*free some space"),
    ):
        save_session(video, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_read_only_folder_is_reported_and_the_old_file_untouched(video):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "video.safetensors"
        save_session(video, path)
        before = path.read_bytes()
        with read_only(folder), pytest.raises(StoreError, match=r"cannot be written to .*choose another folder"):
            save_session(video, path)
        assert path.read_bytes() == before
        assert [file.name for file in folder.iterdir()] == [path.name]


def test_a_folder_that_is_a_file_is_reported(path, video):
    with pytest.raises(StoreError, match="cannot be written"):
        save_session(video, path / "video")


@pytest.mark.parametrize("kind", ["a tuning's checkpoint", "a LoRA", "notes"])
def test_a_file_that_is_no_session_is_not_replaced(tmp_path, video, kind):
    path = tmp_path / "video.safetensors"
    match kind:
        case "a tuning's checkpoint":
            save_file({"x": torch.zeros(1)}, path, {"longlive_tuning": "{}"})
        case "a LoRA":
            save_file({"x": torch.zeros(1)}, path)
        case "notes":
            path.write_text("mine")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"video\.safetensors is not a saved session.*; choose another name"):
        save_session(video, path)
    assert path.read_bytes() == before


def test_an_empty_file_and_a_damaged_session_are_replaced(path, video):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for before in (bytes(content), b""):
        path.write_bytes(before)
        save_session(video, path)
        assert list_content(load_session(path)) == list_content(video)


def test_a_session_replaced_while_it_is_read_is_the_old_one_or_the_new_one(path, video, monkeypatch):
    longer = Sampler(MODEL).sample(video, 1)
    opened = []

    class Replaced:
        """A file that another process replaces when the reader has closed it."""

        def __init__(self, *arguments):
            self.file = safe_open(*arguments)

        def __enter__(self):
            opened.append(self)
            return self.file.__enter__()

        def __exit__(self, *error):
            self.file.__exit__(*error)
            if len(opened) == 1:
                monkeypatch.setattr(tensor_file, "safe_open", safe_open)
                save_session(longer, path)

    monkeypatch.setattr(tensor_file, "safe_open", Replaced)
    assert list_content(load_session(path)) in (list_content(video), list_content(longer))
    assert list_content(load_session(path)) == list_content(longer)


def test_an_interrupt_while_saving_leaves_the_old_file_alone(path, video, monkeypatch):
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("longlive.session.block_store.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_session(video, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_others_may_read_a_session_as_they_may_any_file_of_ours(path, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_version_is_the_one_the_tests_were_written_for():
    assert session_file.VERSION == 1


def test_a_prompt_that_comes_back_is_saved_once(tmp_path, video):
    back = Sampler(MODEL).sample(video, 1).switched_to(video.switches[0].prompt)
    save_session(back, tmp_path / "back.safetensors")
    assert list_content(load_session(tmp_path / "back.safetensors")) == list_content(back)
    assert len(load_file(tmp_path / "back.safetensors")) == 1 + 3
