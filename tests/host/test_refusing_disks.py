"""Disks that refuse a session, a video or a block; at the end, the host still makes videos."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import graphs
import model_files
import pytest
from graphs import FOX, OWL, chain, save_latents
from host_state import count_alive, find_store, forget, read_latents, read_refusal
from short_graphs import decode_with, save_as


def test_a_folder_that_is_a_file(newest):
    (newest.output / "longlive").mkdir(exist_ok=True)
    (newest.output / "longlive" / "blocked").touch()

    told = read_refusal(newest, save_as("blocked/film"))
    assert told.startswith("the session cannot be written to")
    assert told.endswith("free some space or choose another folder")


@contextlib.contextmanager
def mount_disk(folder: Path, options: str) -> Iterator[None]:
    """Mount a small disk at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("options", ["size=8k", "ro"])
def test_a_disk_that_refuses_a_session(newest, options):
    with mount_disk(newest.output / "longlive" / "disk", options):
        told = read_refusal(newest, save_as("disk/film"))

    assert told.startswith("the session cannot be written to")
    assert told.endswith("free some space or choose another folder")


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_disk_that_refuses_a_video(newest, options):
    with mount_disk(newest.output / "disk", options):
        told = read_refusal(newest, decode_with(model_files.VAE.name, f"disk/{options}"))

    assert "cannot be written after" in told
    assert told.endswith("free some space or choose a folder you may write to")


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_disk_that_refuses_blocks_costs_no_video(newest, options):
    forget(newest)
    with mount_disk(find_store(newest), options):
        newest.run(chain((FOX, 2), seed=2, name="kept"))
        assert count_alive(newest)["caches"] == 0

    assert "finished work cannot be stored in" in newest.log
    assert read_latents(newest, "kept").shape[2] == 6


def test_after_all_that_the_host_makes_videos(newest):
    newest.run(save_latents(chain((FOX, 1), (OWL, 1), seed=4), "chunk1", "after_all"))

    direct = graphs.compute_expected(chain((FOX, 1), (OWL, 1), seed=4), "chunk1", newest.models)
    assert read_latents(newest, "after_all").shape[2] == direct.num_frames
    assert count_alive(newest)["caches"] == 0
