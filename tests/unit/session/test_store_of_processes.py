"""A store that several processes use, one of which may be killed, and clocks that jump."""

import multiprocessing
import os
import random
import time
import uuid
from pathlib import Path

import torch
from patience import wait_until
from stored import read_block, write_block
from stored_blocks import (
    FILE_BYTES,
    age,
    fill,
    list_files,
    list_held,
    make_block,
    make_key,
)

from longlive.files import ABANDONED_SECONDS, claim
from longlive.session.block_store import Store, open_store

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.rollout.sampler", "longlive.session.block_store"])


def name_part(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex}.part"


def test_parts_of_killed_processes_are_swept_once_they_are_old(tmp_path):
    fill(Store(tmp_path), [1])
    old, young = (name_part(list_files(tmp_path)[0].parent) for _ in range(2))
    for part in (old, young):
        part.write_bytes(b"half")
    then = time.time() - ABANDONED_SECONDS - 10
    os.utime(old, (then, then))
    fill(Store(tmp_path), [2])
    assert not old.exists()
    assert young.exists()


def test_a_store_removes_only_what_it_made(tmp_path):
    """A user may choose a folder with other files as the store."""
    long_ago = time.time() - 10 * ABANDONED_SECONDS
    others = [
        tmp_path / name
        for name in (
            "ab/notes.txt",
            "hi/model.safetensors",
            "ab/model.safetensors",
            "ab/.cache.part",
            f"hi/{make_key(1)}",
        )
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 * FILE_BYTES))
        os.utime(path, (long_ago, long_ago))
    store = fill(Store(tmp_path, memory_bytes=0, disk_bytes=3 * FILE_BYTES), range(8))
    assert [path for path in others if not path.exists()] == []
    assert len(list_held(store, range(8))) >= 3


def write_until_killed(folder: Path, shape: tuple[int, ...], started) -> None:
    torch.set_num_threads(1)
    store, latents = Store(folder, memory_bytes=0), torch.zeros(shape)
    while True:
        for value in range(8):
            write_block(store, make_key(1), latents.fill_(value))
            started.set()


def write_often(folder: Path, number: int, times: int, barrier) -> None:
    torch.set_num_threads(1)
    store, latents = Store(folder, memory_bytes=0), make_block(number, (1, 3, 16, 64, 64))
    barrier.wait()
    for _ in range(times):
        write_block(store, make_key(1), latents)


def test_two_processes_that_write_the_same_key_leave_one_whole_entry(tmp_path):
    shape, barrier = (1, 3, 16, 64, 64), processes.Barrier(3)
    writers = [processes.Process(target=write_often, args=(tmp_path, number, 50, barrier)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        latents = read_block(Store(tmp_path), make_key(1), shape)
        if latents is not None:
            assert len(latents.unique()) == 1  # whole: of one writer alone
            seen.add(latents[0, 0, 0, 0, 0].item())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {1.0, 2.0}
    assert seen
    assert len(list_files(tmp_path)) == 1


def test_a_process_killed_while_it_writes_leaves_no_half_entry(tmp_path):
    """Kill a process at random moments until a few kills came during a write; the entry is always whole."""
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
        latents = read_block(Store(tmp_path), make_key(1), shape)
        assert latents is not None
        assert latents.min() == latents.max()
        for path in list_files(tmp_path):
            if path.suffix != ".safetensors":
                torn += 1
                path.unlink()


def test_a_part_that_is_being_written_is_not_swept_when_the_clock_jumps_ahead(tmp_path):
    fill(Store(tmp_path), [1])
    part = name_part(list_files(tmp_path)[0].parent)
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
    size = max(path.stat().st_size for path in list_files(tmp_path))
    store = Store(tmp_path, memory_bytes=0, disk_bytes=8 * size)
    fill(store, range(8, 14))
    assert list_held(store, range(8, 14)) == list(range(8, 14))


def test_a_process_has_one_store_in_a_folder(tmp_path):
    assert open_store(tmp_path) is open_store(tmp_path)
    assert open_store(tmp_path) is not open_store(tmp_path / "other")
