"""Finished blocks in memory and on disk: limits, damage, two processes, a killed one, a disk that refuses."""

import logging
import multiprocessing
import os
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from disks import closed_to_us, read_only
from patience import wait_until
from safetensors.torch import save_file

from longlive.files import ABANDONED_SECONDS, claim
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store, hash_entry, open_store
from longlive.session.session import Session

SHAPE = (1, 3, 16, 2, 4)
BLOCK_BYTES = 4 * 3 * 16 * 2 * 4
FILE_BYTES = 2 * BLOCK_BYTES  # more than a file of one block takes, less than two
MODEL = tiny.model()

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.rollout.sampler", "longlive.session.block_store"])


def key(number: int) -> str:
    return f"{number:02x}" * 32


def block(number: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.full(shape, float(number))


def fill(store: Store, numbers) -> Store:
    for number in numbers:
        store.put(key(number), block(number))
    return store


def list_held(store: Store, numbers) -> list[int]:
    """Which of the blocks the store still has; a block that is there is the right one."""
    found = {number: store.get(key(number), SHAPE) for number in numbers}
    assert all(latents is None or torch.equal(latents, block(number)) for number, latents in found.items())
    return [number for number, latents in found.items() if latents is not None]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(folder: Path, number: int, seconds: float) -> None:
    path = folder / key(number)[:2] / f"{key(number)}.safetensors"
    then = time.time() - seconds
    os.utime(path, (then, then))


def name_part(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex}.part"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_block_comes_back_bit_for_bit_from_memory_and_from_disk(tmp_path):
    latents = torch.randn(SHAPE)
    for dtype in (torch.float32, torch.bfloat16):
        store, name = Store(tmp_path), key(1 if dtype is torch.float32 else 2)
        store.put(name, latents.to(dtype))
        for place in (store, Store(tmp_path)):
            found = place.get(name, SHAPE, dtype)
            assert found is not None
            assert found.dtype is dtype
            assert torch.equal(found, latents.to(dtype))


def test_the_folder_may_be_given_as_text(tmp_path):
    fill(Store(str(tmp_path)), [1])
    assert list_held(Store(tmp_path), [1]) == [1]


def test_an_unknown_key_is_none(tmp_path):
    assert Store().get(key(1), SHAPE) is None
    assert Store(tmp_path).get(key(1), SHAPE) is None


def test_memory_keeps_the_blocks_used_last():
    store = fill(Store(memory_bytes=3 * BLOCK_BYTES), range(3))
    assert store.get(key(0), SHAPE) is not None
    fill(store, [3, 4])
    assert list_held(store, range(5)) == [0, 3, 4]


def test_a_block_put_twice_is_counted_once():
    store = fill(Store(memory_bytes=3 * BLOCK_BYTES), [0, 1, 1, 1, 2])
    assert list_held(store, range(3)) == [0, 1, 2]


def test_without_memory_the_disk_answers(tmp_path):
    store = fill(Store(tmp_path, memory_bytes=0), range(3))
    assert list_held(store, range(3)) == [0, 1, 2]
    assert list_held(fill(Store(memory_bytes=0), range(3)), range(3)) == []


def test_the_disk_loses_the_blocks_unused_for_longest(tmp_path):
    fill(Store(tmp_path), range(8))
    for number in range(8):
        age(tmp_path, number, seconds=100 - number)
    sizes = {path.stat().st_size for path in files(tmp_path)}
    assert max(sizes) <= FILE_BYTES < 2 * min(sizes)

    assert list_held(Store(tmp_path), [0, 2]) == [0, 2]  # used again, and so the youngest
    fill(Store(tmp_path, disk_bytes=5 * max(sizes)), [8])
    assert list_held(Store(tmp_path), range(9)) == [0, 2, 7, 8]


def test_the_disk_stays_within_its_limit(tmp_path):
    limit = 10 * BLOCK_BYTES  # headers are a fifth of such small entries
    store = Store(tmp_path, memory_bytes=0, disk_bytes=limit)
    for number in range(40):
        store.put(key(number), block(number))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
        assert store.get(key(number), SHAPE) is not None
    assert len(files(tmp_path)) > 5


@pytest.mark.parametrize(
    "damage",
    ["empty", "truncated", "text", "other tensors", "other shape", "other dtype", "float8", "not a number", "a folder"],
)
def test_a_damaged_entry_is_removed_and_computed_again(tmp_path, caplog, damage):
    fill(Store(tmp_path), [1, 2])
    path, other = files(tmp_path)
    whole = path.read_bytes()
    match damage:
        case "other tensors":
            save_file({"pixels": block(1)}, path)
        case "other shape":
            save_file({"latents": torch.zeros(1, 2, 16, 2, 4)}, path)
        case "other dtype":
            store_file(path, block(1).double())
        case "float8":  # whose bytes torch does not hand out
            store_file(path, block(1), torch.float8_e4m3fn)
        case "not a number":
            store_file(path, block(1) / 0)
        case "a folder":
            path.unlink()
            path.mkdir()
        case _:
            path.write_bytes({"empty": b"", "truncated": whole[:-1], "text": b"not latents"}[damage])
    store = Store(tmp_path)
    assert store.get(key(1), SHAPE) is None
    assert [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert list_held(store, [2]) == [2]
    assert files(tmp_path) == [other]
    assert list_held(fill(store, [1]), [1]) == [1]
    assert list_held(Store(tmp_path), [1, 2]) == [1, 2]


def store_file(path: Path, latents: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """An entry whose digest fits what it holds, as another version may have written it."""
    save_file({"latents": latents.to(dtype or latents.dtype), "digest": hash_entry({"latents": latents})}, path)


def test_parts_of_killed_processes_are_swept_once_they_are_old(tmp_path):
    fill(Store(tmp_path), [1])
    old, young = (name_part(files(tmp_path)[0].parent) for _ in range(2))
    for part in (old, young):
        part.write_bytes(b"half")
    then = time.time() - ABANDONED_SECONDS - 10
    os.utime(old, (then, then))
    fill(Store(tmp_path), [2])
    assert not old.exists()
    assert young.exists()


def test_a_store_removes_only_what_it_made(tmp_path):
    """Someone may name a folder of their own as the store."""
    long_ago = time.time() - 10 * ABANDONED_SECONDS
    others = [
        tmp_path / name
        for name in ("ab/notes.txt", "hi/model.safetensors", "ab/model.safetensors", "ab/.cache.part", f"hi/{key(1)}")
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 * FILE_BYTES))
        os.utime(path, (long_ago, long_ago))
    store = fill(Store(tmp_path, memory_bytes=0, disk_bytes=3 * FILE_BYTES), range(8))
    assert [path for path in others if not path.exists()] == []
    assert len(list_held(store, range(8))) >= 3


def test_an_entry_larger_than_the_limit_pushes_no_other_out(tmp_path, caplog):
    store = fill(Store(tmp_path, memory_bytes=3 * BLOCK_BYTES, disk_bytes=6 * FILE_BYTES), range(3))
    large = (1, 48, *SHAPE[2:])
    store.put(key(9), block(9, large))
    assert store.get(key(9), large) is None
    assert len(warnings(caplog)) == 1
    for place in (store, Store(tmp_path)):
        assert list_held(place, range(3)) == [0, 1, 2]


def test_an_entry_in_memory_of_another_shape_is_not_given():
    store = fill(Store(), [1])
    assert store.get(key(1), (1, 3, 16, 4, 4)) is None
    assert store.get(key(1), SHAPE, torch.bfloat16) is None
    assert list_held(store, [1]) == [1]


def test_an_entry_that_cannot_be_reached_counts_as_none(shared, caplog):
    """One in another user's folder, and one in a folder whose name is too long for the disk."""
    fill(Store(shared), [1])
    with closed_to_us(shared / key(1)[:2]):
        assert list_held(Store(shared), [1]) == []
    assert list_held(Store(shared / ("x" * 300)), [1]) == []
    assert warnings(caplog) == []
    assert list_held(Store(shared), [1]) == [1]


def write_until_killed(folder: Path, shape: tuple[int, ...], started) -> None:
    torch.set_num_threads(1)
    store, latents = Store(folder, memory_bytes=0), torch.zeros(shape)
    while True:
        for value in range(8):
            store.put(key(1), latents.fill_(value))
            started.set()


def write_often(folder: Path, number: int, times: int, barrier) -> None:
    torch.set_num_threads(1)
    store, latents = Store(folder, memory_bytes=0), block(number, (1, 3, 16, 64, 64))
    barrier.wait()
    for _ in range(times):
        store.put(key(1), latents)


def test_two_processes_that_write_the_same_key_leave_one_whole_entry(tmp_path):
    shape, barrier = (1, 3, 16, 64, 64), processes.Barrier(3)
    writers = [processes.Process(target=write_often, args=(tmp_path, number, 50, barrier)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        latents = Store(tmp_path).get(key(1), shape)
        if latents is not None:
            assert len(latents.unique()) == 1  # whole: of one writer alone
            seen.add(latents[0, 0, 0, 0, 0].item())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {1.0, 2.0}
    assert seen
    assert len(files(tmp_path)) == 1


def test_a_process_killed_while_it_writes_leaves_no_half_entry(tmp_path):
    """Killed at moments of chance until a few were in the midst of writing; the entry is always a whole one."""
    shape, rng, torn, kills = (1, 3, 16, 256, 256), random.Random(0), 0, 0
    while torn < 3:
        kills += 1
        assert kills < 100
        started = processes.Event()
        writer = processes.Process(target=write_until_killed, args=(tmp_path, shape, started))
        writer.start()
        wait_until(started.is_set, writer.pid, "the first entry is written")
        time.sleep(0.3 * rng.random())
        writer.kill()
        writer.join()
        latents = Store(tmp_path).get(key(1), shape)
        assert latents is not None
        assert latents.min() == latents.max()
        for path in files(tmp_path):
            if path.suffix != ".safetensors":
                torn += 1
                path.unlink()


def sample_session(store: Store | None, blocks: int = 3) -> Session:
    with Sampler(MODEL, store=store) as sampler:
        return sampler.sample(tiny.session(), blocks)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_read_only_folder_warns_once_and_sampling_continues(shared, caplog):
    store, expected = Store(shared), sample_session(None)
    with read_only(shared):
        video = sample_session(store)
    (warning,) = warnings(caplog)
    assert "finished work cannot be stored in" in warning
    assert "free some space or choose another folder" in warning
    assert torch.equal(video.latents(), expected.latents())
    assert files(shared) == []
    assert store.get(video.keys[0], video.block_shape) is not None  # memory still answers


def test_a_folder_that_is_a_file_warns_once_and_sampling_continues(tmp_path, caplog):
    (tmp_path / "blocks").write_text("a file")
    video = sample_session(Store(tmp_path / "blocks"))
    assert len(warnings(caplog)) == 1
    assert torch.equal(video.latents(), sample_session(None).latents())


def test_a_read_only_folder_still_answers(shared, caplog):
    """Another user's store, or one on a read-only disk: its entries are good, they only cannot be marked as used."""
    fill(Store(shared), [1, 2])
    with read_only(shared):
        assert list_held(Store(shared, memory_bytes=0), [1, 2]) == [1, 2]
    assert warnings(caplog) == []
    assert len(files(shared)) == 2


def test_a_disk_that_refused_a_block_still_answers_for_others(shared):
    fill(Store(shared), [1])
    store = Store(shared, memory_bytes=0)
    with read_only(shared):
        fill(store, [2])
    assert list_held(store, [1, 2]) == [1]


def test_a_sampler_that_meets_another_branch_in_the_store_does_not_mistake_it_for_its_own():
    """One sampler makes the left branch, then continues with the right one, whose beginning the store has."""
    store = Store()
    trunk = Sampler(MODEL, store=store).sample(tiny.session(), 5)
    left, right = (trunk.switched_to(tiny.prompt(number)) for number in (1, 2))
    Sampler(MODEL, store=store).sample(right, 2)
    sampler = Sampler(MODEL, store=store)
    sampler.sample(left, 3)
    assert torch.equal(sampler.sample(right, 4).latents(), Sampler(MODEL).sample(right, 4).latents())


def test_a_sampler_interrupted_while_it_stores_a_block_is_empty():
    class Interrupted(Store):
        def put(self, key, block):
            raise KeyboardInterrupt

    sampler = Sampler(MODEL)
    trunk = sampler.sample(tiny.session(), 5)
    left, right = (trunk.switched_to(tiny.prompt(number)) for number in (1, 2))
    sampler.store = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(left, 1)
    sampler.store = None
    assert torch.equal(sampler.sample(right, 2).latents(), Sampler(MODEL).sample(right, 2).latents())


def test_a_flipped_bit_is_noticed_and_the_block_computed_again(tmp_path):
    """A wrong block would be built upon by every later one."""
    fill(Store(tmp_path), [1])
    [path] = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert list_held(Store(tmp_path), [1]) == []
    assert not path.exists()


def test_an_entry_that_cannot_be_written_does_not_end_the_keeping_of_others(tmp_path, caplog):
    folder = tmp_path / key(1)[:2] / f"{key(1)}.safetensors"
    (folder / "somebody's").mkdir(parents=True)
    store = fill(Store(tmp_path, memory_bytes=0), [1, 2, 3])
    assert len(warnings(caplog)) == 1
    assert list_held(store, [2, 3]) == [2, 3]
    assert (folder / "somebody's").is_dir()


def test_a_part_that_is_being_written_is_not_swept_when_the_clock_jumps_ahead(tmp_path):
    fill(Store(tmp_path), [1])
    part = name_part(files(tmp_path)[0].parent)
    part.write_bytes(b"half")
    long_ago = time.time() - 10 * ABANDONED_SECONDS
    with claim(part):
        os.utime(part, (long_ago, long_ago))
        fill(Store(tmp_path), [2])
        assert part.exists()
    fill(Store(tmp_path), [3])
    assert not part.exists()


def test_new_blocks_outlive_old_ones_after_the_clock_was_set_back(tmp_path):
    fill(Store(tmp_path), range(8))
    for number in range(8):
        age(tmp_path, number, seconds=-3600)  # used an hour from now
    size = max(path.stat().st_size for path in files(tmp_path))
    store = Store(tmp_path, memory_bytes=0, disk_bytes=8 * size)
    fill(store, range(8, 14))
    assert list_held(store, range(8, 14)) == list(range(8, 14))


def test_a_process_has_one_store_in_a_folder(tmp_path):
    assert open_store(tmp_path) is open_store(tmp_path)
    assert open_store(tmp_path) is not open_store(tmp_path / "other")
