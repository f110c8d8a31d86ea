"""Law 3 across processes: a run killed at any block and continued elsewhere makes the same video, bit for bit."""

import multiprocessing
import time
from pathlib import Path

import pytest
import tiny
import torch
from patience import wait_until

from longlive.config import RolloutConfig
from longlive.rollout.rollout import Pass, PassKind
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.session import Session

STORY = ((3, None), (2, Boundary.KEEP), (3, Boundary.RECACHE), (2, Boundary.RENEW), (2, Boundary.CUT))
BLOCKS = sum(blocks for blocks, _ in STORY)

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.rollout.sampler", "longlive.session.block_store"])


def make_video(store: Store | None, watch=None, config: RolloutConfig | None = None) -> Session:
    """Make the story from its beginning, as a host would ask for it again; a rolling one with its end."""
    with Sampler(tiny.model(), store=store, watch=watch) as sampler:
        video = tiny.session(config)
        for number, (blocks, boundary) in enumerate(STORY):
            if boundary:
                video = video.switched_to(tiny.prompt(number), boundary)
            video = sampler.sample(video, blocks)
        *_, video = video, *sampler.finish(video)
    return video


def make_until_killed(folder: Path, block: int, step: int, reached) -> None:
    """Make the story and wait in a denoising step of a block, to be killed there."""
    torch.set_num_threads(1)
    started = 0

    def watch(done: Pass) -> None:
        nonlocal started
        started += done.kind is PassKind.DENOISE and done.step == 0
        if done.kind is PassKind.DENOISE and (started - 1, done.step) == (block, step):
            reached.set()
            time.sleep(3600)

    make_video(Store(folder, memory_bytes=0), watch)


def roll_until_killed(folder: Path, number: int, reached) -> None:
    """Make the story as a rolling video and wait in a joint pass, to be killed there."""
    torch.set_num_threads(1)
    seen: list[Pass] = []

    def watch(done: Pass) -> None:
        seen.extend([done] if done.kind is PassKind.DENOISE else [])
        if len(seen) > number:
            reached.set()
            time.sleep(3600)

    make_video(Store(folder, memory_bytes=0), watch, RolloutConfig.roll())


@pytest.mark.parametrize("number", [2, 9, 13, 22])  # in the ramp, in the midst, after a cut, in the last passes
def test_law_3_a_rolling_run_killed_in_any_pass_and_resumed_is_the_same_video(tmp_path, number):
    reached = processes.Event()
    run = processes.Process(target=roll_until_killed, args=(tmp_path, number, reached))
    run.start()
    wait_until(reached.is_set, run.pid, f"joint pass {number}")
    run.kill()
    run.join()
    assert run.exitcode == -9
    assert len([*tmp_path.rglob("*.safetensors")]) == number
    made: list[Pass] = []
    resumed = make_video(Store(tmp_path), made.append, RolloutConfig.roll())
    whole: list[Pass] = []
    expected = make_video(None, whole.append, RolloutConfig.roll())
    assert torch.equal(resumed.latents(), expected.latents())
    assert resumed.ends == expected.ends == (3 * (BLOCKS + 4),)
    joint = [sum(done.kind is PassKind.DENOISE for done in passes) for passes in (made, whole)]
    assert joint[0] == joint[1] - number


@pytest.fixture(scope="module")
def whole() -> torch.Tensor:
    return make_video(None).latents()


@pytest.mark.parametrize(("block", "step"), [(0, 2), (1, 0), (3, 1), (5, 0), (7, 3), (8, 2), (10, 0), (11, 3)])
def test_law_3_a_run_killed_at_any_block_and_resumed_is_the_same_video(tmp_path, whole, block, step):
    reached = processes.Event()
    run = processes.Process(target=make_until_killed, args=(tmp_path, block, step, reached))
    run.start()
    wait_until(reached.is_set, run.pid, f"step {step} of block {block}")
    run.kill()
    run.join()
    assert run.exitcode == -9
    stored = len([*tmp_path.rglob("*.safetensors")])
    assert stored == block

    made: list[int] = []
    resumed = make_video(
        Store(tmp_path), lambda done: made.append(done.step) if done.kind is PassKind.DENOISE else None
    )
    assert torch.equal(resumed.latents(), whole)
    assert made == [0, 1, 2, 3] * (BLOCKS - block)  # only the missing blocks


def test_law_3_a_run_killed_twice_is_the_same_video(tmp_path, whole):
    for block in (4, 5):  # the second run finds four blocks and is killed in its second own
        reached = processes.Event()
        run = processes.Process(target=make_until_killed, args=(tmp_path, block if block == 4 else 1, 1, reached))
        run.start()
        wait_until(reached.is_set, run.pid, f"block {block}")
        run.kill()
        run.join()
        assert len([*tmp_path.rglob("*.safetensors")]) == block
    assert torch.equal(make_video(Store(tmp_path)).latents(), whole)
