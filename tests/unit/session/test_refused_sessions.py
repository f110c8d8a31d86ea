"""Files that are no session, or a damaged or forged one, are refused; one that is accepted has its own keys."""

import hashlib
import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from saved_sessions import MODEL, list_content, rewrite

from longlive.digest import hash_tensors
from longlive.errors import SessionError
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.session_file import NotASession, load_session, save_session


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SessionError, match=r"there is no session at nowhere/video; save one first"):
        load_session(Path("nowhere/video"))


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"\x80\x02}q\x00.", b"{}" * 20], ids=["empty", "riff", "pickle", "json"]
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
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
    rewrite(path, version="4")
    with pytest.raises(SessionError, match=r"is a session of version 4, expected 1 or 2 or 3; update"):
        load_session(path)


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
def test_a_rewritten_file_is_loaded_if_nothing_is_wrong_with_it(path, video, header):
    """So that the refusals below are for what they change."""
    rewrite(path, **header)
    assert list_content(load_session(path)) == list_content(video)


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
def test_an_unknown_dtype_or_a_wrong_shape_is_refused(path, damage):
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
def test_a_header_that_is_not_an_object_is_refused(path, text):
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


def test_two_loads_of_one_file_have_the_same_keys_whatever_keys_it_states(path, video):
    first = load_session(path)
    assert load_session(path).keys == first.keys
    rewrite(path, keys=["a" * 64] * 6)
    assert load_session(path).keys == first.keys
    assert len(first.keys) == len(video.keys)
    assert not set(first.keys) & {"a" * 64, *video.keys}


def test_blocks_made_after_a_loaded_session_are_found_again(path):
    store = Store()
    ahead = Sampler(MODEL, store=store).sample(load_session(path), 2)
    found = []
    again = Sampler(MODEL, store=store, on_found=lambda: found.append(1)).sample(load_session(path), 2)
    assert len(found) == 2
    assert list_content(again) == list_content(ahead)


def test_a_forged_session_changes_no_block_of_a_video_made_here(tmp_path):
    """Its latents are not those that its keys stand for, and its digest is right."""
    own = Sampler(MODEL).sample(tiny.session(), 4)
    gift = tmp_path / "gift"
    save_session(own.rewound_to(9), gift)
    rewrite(gift, tensors={"latents": torch.randn(1, 9, 16, 2, 4)})
    store = Store()
    Sampler(MODEL, store=store).sample(load_session(gift), 1)
    assert list_content(Sampler(MODEL, store=store).sample(tiny.session(), 4)) == list_content(own)


def test_a_forged_session_is_not_answered_with_blocks_made_here(tmp_path):
    store = Store()
    own = Sampler(MODEL, store=store).sample(tiny.session(), 4)
    gift = tmp_path / "gift"
    save_session(own.rewound_to(9), gift)
    rewrite(gift, tensors={"latents": torch.randn(1, 9, 16, 2, 4)})
    expected = Sampler(MODEL).sample(load_session(gift), 1)
    assert list_content(Sampler(MODEL, store=store).sample(load_session(gift), 1)) == list_content(expected)


def test_a_flipped_bit_is_noticed(path):
    """Going on from it would put wrong blocks into the store."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SessionError, match=r"is damaged \(it is not what was saved\); save the session again"):
        load_session(path)
