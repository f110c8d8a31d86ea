"""A session as a file: the same bit for bit when loaded; other files are refused, an earlier file stays."""

import hashlib
import json
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from disks import read_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.config import Positions, RolloutConfig
from longlive.digest import hash_tensors
from longlive.errors import SessionError, StoreError
from longlive.rollout.sampler import Sampler
from longlive.session import session_file
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.session import Session
from longlive.session.session_file import NotASession, load_session, save_session

MODEL = tiny.model()


def list_facts(session: Session) -> tuple:
    """All that a session holds. Not its keys: a session from a file has its own."""
    tensors = [*session.blocks, *(switch.prompt.embedding for switch in session.switches)]
    switches = [(s.frame, s.boundary, s.prompt.text, s.prompt.rows, s.prompt.digest) for s in session.switches]
    head = (session.model, session.config, session.height, session.width, session.seed, session.dtype, session.channels)
    return head, switches, [(x.dtype, x.tolist()) for x in tensors]


@pytest.fixture(scope="module")
def video() -> Session:
    """A video with a switch behind it and another one waiting."""
    trunk = Sampler(MODEL).sample(tiny.session(), 5)
    trunk = Sampler(MODEL).sample(trunk.switched_to(tiny.prompt(1), Boundary.RENEW), 1)
    return trunk.switched_to(tiny.prompt(2), Boundary.KEEP)


@pytest.fixture
def path(tmp_path, video) -> Path:
    path = tmp_path / "video.safetensors"
    save_session(video, path)
    return path


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that takes no more than so many bytes a file, by the system's own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_session_comes_back_bit_for_bit(path, video):
    assert list_facts(load_session(path)) == list_facts(video)


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
    assert list_facts(load_session(tmp_path / "video")) == list_facts(video)


def test_a_session_of_half_precision_and_no_prompt_comes_back(tmp_path):
    fields = {"model": "m", "config": RolloutConfig(), "height": 16, "width": 32, "seed": 0, "channels": 16}
    video = Session.start(dtype=torch.bfloat16, **fields)
    save_session(video, tmp_path / "video")
    assert list_facts(load_session(tmp_path / "video")) == list_facts(video)


def test_law_3_continuing_what_was_loaded_is_continuing_the_original(path, video):
    ahead = Sampler(MODEL).sample(video, 3)
    assert list_facts(Sampler(MODEL).sample(load_session(path), 3)) == list_facts(ahead)


def test_a_session_is_one_safetensors_file_with_a_versioned_header(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"format": "longlive.session", "version": "1"}.items()
    assert load_file(path)["latents"].shape == (1, 18, 16, 2, 4)


def test_saving_replaces_the_file_as_a_whole(path, video):
    longer = Sampler(MODEL).sample(video, 1)
    save_session(longer, path)
    assert list_facts(load_session(path)) == list_facts(longer)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_folders_on_the_way_are_made(tmp_path, video):
    save_session(video, tmp_path / "a" / "b" / "video")
    assert list_facts(load_session(tmp_path / "a" / "b" / "video")) == list_facts(video)


def test_what_was_loaded_does_not_hang_on_the_file(path, video):
    """On Windows an open file can be neither replaced nor removed: load, continue, save under the same name."""
    loaded = load_session(path)
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert list_facts(loaded) == list_facts(video)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SessionError, match=r"there is no session at nowhere/video; save one first"):
        load_session(Path("nowhere/video"))


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"\x80\x02}q\x00.", b"{}" * 20], ids=["empty", "riff", "pickle", "json"]
)
def test_what_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "video"
    path.write_bytes(content)
    with pytest.raises(NotASession, match="is not a whole session file"):
        load_session(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(NotASession, match="is not a whole session file"):
        load_session(tmp_path)


def test_a_truncated_session_is_refused_wherever_it_ends(path):
    whole = path.read_bytes()
    for kept in (1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(SessionError, match=r"is not a whole session file .*; save the session again"):
            load_session(path)


def test_another_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights"
    for metadata in (None, {"format": "pt"}):
        save_file({"latents": torch.zeros(1)}, path, metadata)
        with pytest.raises(NotASession, match="is a safetensors file, but not a LongLive session"):
            load_session(path)


def test_a_later_version_is_refused(path):
    rewrite(path, version="2")
    with pytest.raises(SessionError, match=r"is a session of version 2, .*1.*; update"):
        load_session(path)


def rewrite(path: Path, version: str = "1", tensors: dict | None = None, without: str = "", **header) -> None:
    """The same file with other entries in its header, or other tensors."""
    with safe_open(path, "pt") as file:
        session = json.loads(file.metadata()["session"])
    session = {name: value for name, value in (session | header).items() if name != without}
    everything = {name: x.clone() for name, x in (load_file(path) | (tensors or {})).items() if x is not None}
    written = json.dumps(session)
    digest = hashlib.sha256(f"{written} {hash_tensors(everything)}".encode()).hexdigest()
    metadata = {"format": "longlive.session", "version": version, "session": written, "digest": digest}
    path.unlink()
    save_file(everything, path, metadata)


def change_switch(entry: int, **fields) -> list[dict]:
    """The switches of the video, one of them with other fields."""
    switches = [
        {"frame": 0, "boundary": "discard", "text": "prompt 0", "rows": 4, "prompt": 0},
        {"frame": 15, "boundary": "renew", "text": "prompt 1", "rows": 4, "prompt": 1},
        {"frame": 18, "boundary": "keep", "text": "prompt 2", "rows": 4, "prompt": 2},
    ]
    switches[entry] |= fields
    return switches


@pytest.mark.parametrize("header", [{}, {"switches": change_switch(0)}], ids=["as it is", "switches"])
def test_a_rewritten_file_is_taken_if_nothing_is_wrong_with_it(path, video, header):
    """So that the refusals below are for what they change."""
    rewrite(path, **header)
    assert list_facts(load_session(path)) == list_facts(video)


FIELDS = ["model", "config", "height", "width", "seed", "dtype", "channels", "keys", "switches"]


@pytest.mark.parametrize("without", FIELDS)
def test_a_header_that_lacks_something_is_refused(path, without):
    rewrite(path, without=without)
    with pytest.raises(SessionError, match=f"is damaged .*{without}.*; save the session again"):
        load_session(path)


def spoil(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[-1] = value
    return x


EMBEDDING, LATENTS = torch.ones(1, 4, 10), torch.zeros(1, 18, 16, 2, 4)
DAMAGE = {
    "model that is none": {"model": None},
    "seed of text": {"seed": "x"},
    "seed with a fraction": {"seed": 1.5},
    "seed below 0": {"seed": -1},
    "seed that is a truth": {"seed": True},
    "height with a point": {"height": 16.0},
    "width without end": {"width": 2**40},
    "channels without end": {"channels": 2**40},
    "frame within a block": {"switches": change_switch(1, frame=7)},
    "frame below 0": {"switches": change_switch(1, frame=-3)},
    "frame far behind the end": {"switches": change_switch(2, frame=10**9)},
    "frame with a fraction": {"switches": change_switch(1, frame=1.5)},
    "frame of text": {"switches": change_switch(1, frame="x")},
    "frames that fall": {"switches": change_switch(2, frame=12)},
    "two switches at a frame": {"switches": change_switch(2, frame=15)},
    "a beginning later than frame 0": {"switches": change_switch(0, frame=3)},
    "a beginning that recaches": {"switches": change_switch(0, boundary="recache")},
    "no switches": {"switches": []},
    "rows without end": {"switches": change_switch(1, rows=10**11)},
    "rows that do not hold the prompt": {"switches": change_switch(1, rows=3)},
    "rows below 0": {"switches": change_switch(1, rows=-5)},
    "rows of text": {"switches": change_switch(1, rows="x")},
    "words that are none": {"switches": change_switch(1, text=5)},
    "prompt without end": {"switches": change_switch(1, prompt=10**9)},
    "prompt that is a name": {"switches": change_switch(1, prompt="latents")},
    "keys that are numbers": {"keys": [5] * 6},
    "keys that are not hashes": {"keys": ["../" * 21 + "x"] * 6},
    "prompts of different widths": {"tensors": {"prompt.1": torch.ones(1, 4, 11)}},
    "a prompt of two": {"tensors": {"prompt.1": torch.ones(2, 4, 10)}},
    "a prompt of no row": {"tensors": {"prompt.1": torch.ones(1, 0, 10)}},
    "a prompt of whole numbers": {"tensors": {"prompt.1": EMBEDDING.int()}},
    "a prompt with a NaN": {"tensors": {"prompt.1": spoil(EMBEDDING, float("nan"))}},
    "latents with a NaN": {"tensors": {"latents": spoil(LATENTS, float("nan"))}},
    "latents with an infinity": {"tensors": {"latents": spoil(LATENTS, -float("inf"))}},
    "latents of another dtype": {"tensors": {"latents": LATENTS.half()}},
    "latents of nothing, many times": {"tensors": {"latents": torch.zeros(1, 10**9, 0, 2, 4)}},
    "config of another pack": {"config": {"window": 12, "tail": 3}},
    "config that breaks a rule": {"config": {"window": 2}},
    "config of a list": {"config": [12, 3]},
    "width of other latents": {"width": 48},
    "width no video has": {"width": 31},
    "channels of other latents": {"channels": 48},
    "dtype of other latents": {"dtype": "bfloat16"},
    "dtype that is something else": {"dtype": "nn"},
    "keys too few": {"keys": ["a"]},
    "keys that are none": {"keys": None},
    "boundary that is none": {"switches": [{"frame": 0, "boundary": "jump", "text": "", "rows": 6}]},
    "switch without its prompt": {
        "switches": [{"frame": n, "boundary": "keep", "text": "", "rows": 6} for n in range(4)]
    },
    "switches that are none": {"switches": 3},
    "latents that are missing": {"tensors": {"latents": None}},
    "latents of a cut block": {"tensors": {"latents": torch.zeros(1, 17, 16, 2, 4)}},
    "a prompt that is missing": {"tensors": {"prompt.1": None}},
}


@pytest.mark.parametrize("damage", [{"dtype": "float99"}, {"tensors": {"latents": torch.zeros(5)}}], ids=str)
def test_a_dtype_or_a_shape_that_is_none_is_refused(path, damage):
    rewrite(path, **damage)
    with pytest.raises(SessionError, match=r"is damaged \(.*\); save the session again"):
        load_session(path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_header_that_does_not_fit_is_refused(path, damage):
    rewrite(path, **damage)
    with pytest.raises(SessionError, match=r"is damaged \(.*\); save the session again"):
        load_session(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"seed": NaN}', '{"seed": 1e999}', '{"seed": 1, "seed": 1}', "[]", "5", '"x"', "{", ""]
)
def test_a_header_that_is_no_object_is_refused(path, text):
    tensors = {name: x.clone() for name, x in load_file(path).items()}
    digest = hashlib.sha256(f"{text} {hash_tensors(tensors)}".encode()).hexdigest()
    save_file(tensors, path, {"format": "longlive.session", "version": "1", "session": text, "digest": digest})
    with pytest.raises(SessionError, match=r"is damaged \(.*\); save the session again"):
        load_session(path)


def test_a_message_about_a_file_is_short_and_harmless(path):
    rewrite(path, version="\x1b[2J" * 1_000_000)
    with pytest.raises(SessionError) as caught:
        load_session(path)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotASession, match=r"is not a whole session file \(it is a pipe, not a file\)"):
        load_session(tmp_path / "pipe")


# the keys of what comes from outside


def test_two_loads_of_one_file_have_the_same_keys_whatever_keys_it_states(path, video):
    first = load_session(path)
    assert load_session(path).keys == first.keys
    rewrite(path, keys=["a" * 64] * 6)
    assert load_session(path).keys == first.keys
    assert len(first.keys) == len(video.keys)
    assert not set(first.keys) & {"a" * 64, *video.keys}


def test_what_is_made_behind_a_loaded_session_is_found_again(path):
    store = Store()
    ahead = Sampler(MODEL, store=store).sample(load_session(path), 2)
    found = []
    again = Sampler(MODEL, store=store, on_found=lambda: found.append(1)).sample(load_session(path), 2)
    assert len(found) == 2
    assert list_facts(again) == list_facts(ahead)


def test_a_forged_session_changes_no_block_of_a_video_made_here(tmp_path):
    """Its latents are not those that its keys stand for, and its digest is right."""
    own = Sampler(MODEL).sample(tiny.session(), 4)
    gift = tmp_path / "gift"
    save_session(own.rewound_to(9), gift)
    rewrite(gift, tensors={"latents": torch.randn(1, 9, 16, 2, 4)})
    store = Store()
    Sampler(MODEL, store=store).sample(load_session(gift), 1)
    assert list_facts(Sampler(MODEL, store=store).sample(tiny.session(), 4)) == list_facts(own)


def test_a_forged_session_is_not_answered_with_blocks_made_here(tmp_path):
    store = Store()
    own = Sampler(MODEL, store=store).sample(tiny.session(), 4)
    gift = tmp_path / "gift"
    save_session(own.rewound_to(9), gift)
    rewrite(gift, tensors={"latents": torch.randn(1, 9, 16, 2, 4)})
    expected = Sampler(MODEL).sample(load_session(gift), 1)
    assert list_facts(Sampler(MODEL, store=store).sample(load_session(gift), 1)) == list_facts(expected)


@pytest.mark.parametrize("num_bytes", [0, 100, 4096])
def test_a_full_disk_is_reported_and_the_old_file_untouched(path, video, num_bytes):
    before = path.read_bytes()
    with (
        largest_file(num_bytes),
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


def test_a_flipped_bit_is_noticed(path):
    """Going on from it would put wrong blocks into the store."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SessionError, match=r"is damaged \(it is not what was saved\); save the session again"):
        load_session(path)


def test_a_prompt_that_comes_back_is_saved_once(tmp_path, video):
    back = Sampler(MODEL).sample(video, 1).switched_to(video.switches[0].prompt)
    save_session(back, tmp_path / "back.safetensors")
    assert list_facts(load_session(tmp_path / "back.safetensors")) == list_facts(back)
    assert len(load_file(tmp_path / "back.safetensors")) == 1 + 3
