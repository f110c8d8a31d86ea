"""Digests: every byte counts, a file is read once, and no damage to the cached digests changes one."""

import hashlib
import json
import os
import stat
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from longlive.digest import TENSORS_HELD, hash_stream, hash_tensors
from longlive.errors import WeightsError
from longlive.weights import file_digest as module
from longlive.weights.file_digest import digest_file

AN_HOUR_AGO = 1_700_000_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.pt"
    return write_file(path, b"some weights")


@pytest.fixture
def at_once(monkeypatch):
    """Files just written are remembered too, as all files of tests are."""
    monkeypatch.setattr(module, "SETTLED_SECONDS", float("-inf"))


@pytest.fixture
def cache(tmp_path, at_once):
    return tmp_path / "cache" / "longlive"


@pytest.fixture
def reads(monkeypatch):
    """How often a file was hashed."""
    calls = []
    hashed = hashlib.file_digest
    monkeypatch.setattr(module.hashlib, "file_digest", lambda *args: calls.append(1) or hashed(*args))
    return calls


def write_file(path, content, seconds=AN_HOUR_AGO):
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def test_a_digest_is_the_sha256_of_the_file(file):
    assert digest_file(file) == hashlib.sha256(b"some weights").hexdigest()


def test_a_file_is_hashed_once(file, cache, reads):
    assert digest_file(file, cache_dir=cache) == digest_file(str(file), cache_dir=cache) == digest_file(file)
    assert len(reads) == 2  # the last one has no cache


def test_a_link_is_the_file_it_leads_to(file, cache, reads):
    link = file.with_name("link.pt")
    link.symlink_to(file)
    assert digest_file(link, cache_dir=cache) == digest_file(file, cache_dir=cache)
    assert len(reads) == 1


def test_many_files_are_remembered_beside_each_other(tmp_path, cache, reads):
    files = [write_file(tmp_path / f"{i}.pt", bytes([i])) for i in range(5)]
    first = [digest_file(file, cache_dir=cache) for file in files]
    assert [digest_file(file, cache_dir=cache) for file in files] == first
    assert len(set(first)) == len(reads) == 5
    assert os.listdir(cache) == ["digests.json"]


@pytest.mark.parametrize(
    ("content", "seconds"), [(b"same length!", AN_HOUR_AGO + 1), (b"longer than before", AN_HOUR_AGO)]
)
def test_a_changed_file_is_hashed_again(file, cache, content, seconds):
    before = digest_file(file, cache_dir=cache)
    write_file(file, content, seconds)
    assert digest_file(file, cache_dir=cache) == hashlib.sha256(content).hexdigest() != before


def swap_content(file, content, *, in_place=False):
    """Another file of the same length and time of change, as tar, rsync and docker put one in the place of another."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    other = file if in_place else file.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=times)
    os.replace(other, file)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("changed", [0, 10_000, -1])
def test_a_file_of_the_same_size_and_time_is_hashed_again(tmp_path, cache, in_place, changed):
    content = bytearray(os.urandom(1_000_000))
    file = write_file(tmp_path / "weights.pt", content)
    first = digest_file(file, cache_dir=cache)
    content[changed] ^= 1  # a byte of the sample or between
    swap_content(file, content, in_place=in_place)
    second = digest_file(file, cache_dir=cache)
    assert second == hashlib.sha256(content).hexdigest() != first
    content[changed] ^= 1
    swap_content(file, content, in_place=in_place)
    assert digest_file(file, cache_dir=cache) == first


def test_without_file_numbers_a_sample_of_bytes_shows_other_weights(tmp_path, cache, monkeypatch):
    """As read-only images and some network drives are: every time and every number the same."""
    alike = SimpleNamespace(st_size=1_000_000, st_mtime_ns=1, st_ctime_ns=1, st_ino=0, st_mode=stat.S_IFREG)
    monkeypatch.setattr(module.os, "fstat", lambda _: alike)
    file = tmp_path / "weights.pt"
    for _ in range(2):
        content = os.urandom(1_000_000)
        file.write_bytes(content)
        assert digest_file(file, cache_dir=cache) == hashlib.sha256(content).hexdigest()


def test_hard_links_to_one_file_share_its_digest(file, cache):
    link = file.with_name("link.pt")
    link.hardlink_to(file)
    assert (
        digest_file(link, cache_dir=cache) == digest_file(file, cache_dir=cache) == digest_file(link, cache_dir=cache)
    )


def test_a_digest_that_an_earlier_version_remembered_is_computed_again(file, cache):
    cache.mkdir(parents=True)
    found = file.stat()
    (cache / "digests.json").write_text(json.dumps({str(file.resolve()): [found.st_size, found.st_mtime_ns, "a" * 64]}))
    assert digest_file(file, cache_dir=cache) == digest_file(file)


@pytest.mark.parametrize("seconds", [None, AN_HOUR_AGO])
def test_a_file_just_written_is_not_remembered(file, cache, monkeypatch, seconds):
    """Its next change might fall into the same tick of the clock and leave both times as they are."""
    monkeypatch.setattr(module, "SETTLED_SECONDS", 3.0)
    file.write_bytes(b"one")
    if seconds:
        os.utime(file, (seconds, seconds))
    digest_file(file, cache_dir=cache)
    assert not (cache / "digests.json").exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file, cache, monkeypatch):
    hashed = hashlib.file_digest

    def changing(*args):
        found = hashed(*args)
        os.utime(file, (AN_HOUR_AGO + 5, AN_HOUR_AGO + 5))
        return found

    monkeypatch.setattr(module.hashlib, "file_digest", changing)
    digest_file(file, cache_dir=cache)
    assert not (cache / "digests.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": 1}',
        b'{"a": [1, 2, 3]}',
        b'{"a": [1, 2, 3, 4, 5, "short"]}',
        b'{"a": {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6": 6}}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_memory_is_replaced(file, cache, reads, damage):
    cache.mkdir(parents=True)
    (cache / "digests.json").write_bytes(damage)
    assert digest_file(file, cache_dir=cache) == digest_file(file, cache_dir=cache) == digest_file(file)
    assert len(reads) == 2
    assert list(json.loads((cache / "digests.json").read_text())) == [str(file.resolve())]


def test_a_memory_that_cannot_be_written_costs_only_time(file, tmp_path, at_once, caplog):
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    assert digest_file(file, cache_dir=blocked) == digest_file(file)
    assert "is not remembered" in caplog.text


def test_a_released_folder_is_all_it_is_read_from_and_nothing_else(tmp_path):
    def folder(name, weight=1.0, config="{}", t5=b"t5"):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(config)
        (path / "models_t5.pth").write_bytes(t5)
        save_file({"x": torch.full((2,), weight)}, path / "diffusion_pytorch_model.safetensors")
        return digest_file(path)

    one = folder("one")
    assert one == folder("two", t5=b"another text encoder")
    assert len({one, folder("three", weight=2.0), folder("four", config='{"num_heads": 2}')}) == 3


def test_a_missing_file_is_named(tmp_path, cache):
    with pytest.raises(WeightsError, match=r"gone\.pt cannot be read \(No such file"):
        digest_file(tmp_path / "gone.pt", cache_dir=cache)


def test_a_pipe_a_loop_of_links_and_an_invalid_name_are_refused_at_once(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "loop", "a\0b", "/dev/zero"):
        with pytest.raises(WeightsError, match=r"cannot be read"):
            digest_file(tmp_path / name, cache_dir=cache)


def test_a_memory_that_is_a_pipe_costs_only_time(file, cache):
    cache.mkdir(parents=True)
    os.mkfifo(cache / "digests.json")
    assert digest_file(file, cache_dir=cache) == digest_file(file)


# tensors


def test_every_part_of_a_tensor_counts():
    a, b = torch.arange(6.0), torch.ones(2, 3, dtype=torch.bfloat16)
    variants = [
        {"a": a, "b": b},
        {"a": a + 1, "b": b},
        {"a": a, "c": b},
        {"a": a},
        {"a": a.view(2, 3), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a, "b": b.view(torch.float16)},
        {"a": a, "b": b, "c": torch.empty(0)},
        {"a": a, "b": b, "c": torch.tensor(1.0)},
        {},
    ]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)


def test_order_layout_and_gradients_do_not_count():
    a, b = torch.randn(3, 4), torch.randn(2).bfloat16()
    expected = hash_tensors({"a": a, "b": b})
    assert hash_tensors({"b": b, "a": a}) == expected
    assert hash_tensors({"a": a.t().contiguous().t(), "b": b.clone()}) == expected
    assert hash_tensors({"a": torch.nn.Parameter(a), "b": b}) == expected


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_every_dtype_has_a_digest(dtype):
    ones = torch.ones(3).to(dtype)
    assert hash_tensors({"x": ones}) != hash_tensors({"x": ones.float().mul(0).to(dtype)})


def test_a_digest_of_tensors_never_changes():
    head = b'["w", "torch.float32", [2]]'
    written_out = len(head).to_bytes(8, "little") + head + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert hash_tensors({"w": torch.tensor([1.0, 2.0])}) == hashlib.sha256(written_out).hexdigest()


# many tensors


def test_a_digest_of_many_tensors_knows_names_bytes_and_no_order():
    tensors = {f"layer {i}": torch.full((3,), float(i)) for i in range(40)}
    expected = hash_stream(tensors.items())
    assert hash_stream(reversed(tensors.items())) == expected
    swapped = tensors | {"layer 0": tensors["layer 1"], "layer 1": tensors["layer 0"]}
    fewer = dict(list(tensors.items())[:-1])
    assert len({expected, *(hash_stream(others.items()) for others in (swapped, fewer, {}))}) == 4


def test_no_more_than_a_few_tensors_of_a_stream_are_held():
    alive = weakref.WeakSet()
    most = 0

    def stream():
        nonlocal most
        for i in range(10 * TENSORS_HELD):
            tensor = torch.full((3,), float(i))
            alive.add(tensor)
            most = max(most, len(alive))
            yield str(i), tensor

    hash_stream(stream())
    assert TENSORS_HELD <= most <= 2 * TENSORS_HELD
