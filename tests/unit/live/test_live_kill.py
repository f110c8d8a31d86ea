"""A directed run that is killed at any instant goes on from there: the same latents, the same film."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from directed import TAKE, Stage, do, render_script, say

from longlive import files
from longlive.live.take import read_plan
from longlive.session.block_store import Store
from longlive.video import film
from longlive.video.fragments import Encoding

STORY = {
    -1: [say("a"), say("late", at=6)],
    2: [say("b", boundary="blend", blend=3)],
    4: [do("rewind", to=3), do("seed", seed=5)],
    5: [say("c", boundary="cut")],
    7: [do("rewind", to=6)],
    9: [do("stop")],
}
KILLS = 20  # instants, spread over the whole run
QUICK = (9, 15)  # those of every test run

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.rollout.sampler", "longlive.session.block_store", "longlive.live.director"])


def direct(folder: Path, reach: Callable[[], object]) -> Stage:
    """Direct the story; call `reach` at every pass and around everything that changes a file."""
    with Stage(folder, store=Store(folder / "blocks", memory_bytes=0)) as stage, watch_files(reach):
        stage.sampler.watch = lambda done: reach()
        stage.run(STORY)
    return stage


@contextmanager
def watch_files(reach: Callable[[], object]) -> Iterator[None]:
    def observe(function: Callable) -> Callable:
        def observed(*args, **settings):
            reach()
            result = function(*args, **settings)
            reach()
            return result

        return observed

    with (
        mock.patch.object(film, "put_bytes", observe(film.put_bytes)),
        mock.patch.object(files, "flush", observe(files.flush)),
        mock.patch.object(os, "replace", observe(os.replace)),
        mock.patch.object(Encoding, "encode", observe(Encoding.encode)),
    ):
        yield


def direct_until_killed(folder: Path, instant: int) -> None:
    """Direct the story and be killed at an instant."""
    torch.set_num_threads(1)
    instants = itertools.count()

    def reach() -> None:
        if next(instants) == instant:
            os.kill(os.getpid(), signal.SIGKILL)

    direct(folder, reach)


@pytest.fixture(scope="module")
def instants(tmp_path_factory) -> int:
    """How many instants the whole run has."""
    instants = itertools.count()
    direct(tmp_path_factory.mktemp("whole"), lambda: next(instants))
    return next(instants)


@pytest.mark.parametrize("kill", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in range(KILLS)])
def test_a_run_killed_at_any_instant_goes_on_from_there(tmp_path, instants, kill):
    run = processes.Process(target=direct_until_killed, args=(tmp_path, (2 * kill + 1) * instants // (2 * KILLS)))
    run.start()
    run.join()
    assert run.exitcode == -9

    plan = read_plan(tmp_path / TAKE)
    left = film.Film.open(tmp_path / TAKE)
    with Stage(tmp_path, store=Store(tmp_path / "blocks")) as stage:
        session = stage.director.make_script()
        assert stage.director.script == plan.script
        assert len(session.blocks) >= len(left.pieces) - 1  # no more is lost than the block that was being made
        if plan.script:
            expected, expected_film = render_script(tmp_path / "again", plan.script)
            assert torch.equal(session.latents(), expected.latents())
            assert stage.film_bytes == expected_film
        stage.run({-1: [] if plan.script else [say("a")], len(session.blocks) + 2: [do("stop")]})
        script, latents, film_bytes = stage.director.script, stage.director.session.latents(), stage.film_bytes
    expected, expected_film = render_script(tmp_path / "longer", script)
    assert torch.equal(latents, expected.latents())
    assert film_bytes == expected_film
