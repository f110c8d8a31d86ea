"""A sampler and its store: a disk that refuses, another branch in the store, an interrupt."""

import pytest
import tiny
import torch
from disks import read_only
from stored import read_block
from stored_blocks import fill, list_files, list_held, list_warnings

from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.session import Session

MODEL = tiny.model()


def sample_session(store: Store | None, blocks: int = 3) -> Session:
    with Sampler(MODEL, store=store) as sampler:
        return sampler.sample(tiny.session(), blocks)


def test_a_read_only_folder_warns_once_and_sampling_continues(shared, caplog):
    store, expected = Store(shared), sample_session(None)
    with read_only(shared):
        video = sample_session(store)
    (warning,) = list_warnings(caplog)
    assert "finished work cannot be stored in" in warning
    assert "free some space or choose another folder" in warning
    assert torch.equal(video.latents(), expected.latents())
    assert list_files(shared) == []
    assert read_block(store, video.keys[0], video.block_shape) is not None  # memory still answers


def test_a_folder_that_is_a_file_warns_once_and_sampling_continues(tmp_path, caplog):
    (tmp_path / "blocks").write_text("a file")
    video = sample_session(Store(tmp_path / "blocks"))
    assert len(list_warnings(caplog)) == 1
    assert torch.equal(video.latents(), sample_session(None).latents())


def test_a_read_only_folder_still_answers(shared, caplog):
    """Another user's store, or one on a read-only disk: its entries are good, they only cannot be marked as used."""
    fill(Store(shared), [1, 2])
    with read_only(shared):
        assert list_held(Store(shared, memory_bytes=0), [1, 2]) == [1, 2]
    assert list_warnings(caplog) == []
    assert len(list_files(shared)) == 2


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
        def write(self, key, entry):
            raise KeyboardInterrupt

    sampler = Sampler(MODEL)
    trunk = sampler.sample(tiny.session(), 5)
    left, right = (trunk.switched_to(tiny.prompt(number)) for number in (1, 2))
    sampler.store = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(left, 1)
    sampler.store = None
    assert torch.equal(sampler.sample(right, 2).latents(), Sampler(MODEL).sample(right, 2).latents())
