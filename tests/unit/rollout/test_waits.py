"""What the GPU waits for: nothing within a block, and the latents at its end. Threads do the rest meanwhile."""

import threading

import pytest
import tiny
import torch
from wait_recorder import WAIT, WaitRecorder

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.compiled import Compiling, compile_model
from longlive.rollout.noise import NoiseAhead, compute_noise
from longlive.rollout.rollout import Pass
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Entry, Store
from longlive.session.boundary import Boundary

MODEL = tiny.model()


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_the_host_waits_for_the_gpu_once_a_block_at_its_end(compiled, positions, monkeypatch):
    model, recorder = CausalWan.of_tree(tiny.model().tree.to("meta")), WaitRecorder()
    if compiled:  # nothing is compiled where operations are recorded, so what would be compiled runs as it is
        monkeypatch.setattr(Compiling, "compile", lambda self, function: function)
        model, said = compile_model(model)
        assert said == "compiled by inductor"
    video = tiny.session(RolloutConfig(positions=positions))
    sampler = Sampler(model, store=Store(), watch=recorder.add_pass)
    with recorder:
        video = sampler.sample(video, 7)
        sampler.sample(video.switched_to(tiny.prompt(1)), 2)
    steps = [f"denoise {step}" for step in range(4)]
    later = ["clean 0", *steps, WAIT]
    assert recorder.events == [*steps, WAIT, *later * 6, "recache 0", *steps, WAIT, *later]


def test_a_finished_block_is_not_copied_back_to_the_gpu_for_its_clean_pass():
    model, recorder = CausalWan.of_tree(tiny.model().tree.to("meta")), WaitRecorder()
    video, blocks = tiny.session(), 5
    with recorder, Sampler(model) as sampler:
        sampler.sample(video, blocks)
    noise = blocks * len(video.config.steps)
    assert recorder.uploads.count(torch.Size(video.block_shape)) == noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_that_stayed_on_the_device_are_those_that_a_session_holds(dtype):
    """A sampler of its own for each block makes every clean pass from the session's latents on the CPU."""
    model = CausalWan.of_tree(tiny.model().tree.to(dtype))
    video = alone = tiny.session(dtype=dtype)
    with Sampler(model) as sampler:
        for boundary, blocks in ((None, 5), (Boundary.RECACHE, 2), (Boundary.KEEP, 3)):
            video, alone = (
                each.switched_to(tiny.prompt(blocks), boundary) if boundary else each for each in (video, alone)
            )
            video = sampler.sample(video, blocks)
            for _ in range(blocks):
                alone = Sampler(model).sample(alone, 1)
    assert video.latents().dtype is dtype
    assert torch.equal(video.latents(), alone.latents())


@pytest.mark.parametrize("boundary", [Boundary.RECACHE, Boundary.KEEP])
def test_blocks_of_the_store_are_not_taken_for_the_block_on_the_device(boundary):
    """The first block is computed, the next two are found; then a pass needs all three, or each one does."""
    store = Store()
    whole = Sampler(MODEL, store=store).sample(tiny.session(), 3)
    del store._entries[whole.keys[0]]
    with Sampler(MODEL, store=store) as sampler:
        found = sampler.sample(tiny.session(), 3)
        again = sampler.sample(found.switched_to(tiny.prompt(1), boundary), 1)
    expected = Sampler(MODEL).sample(whole.switched_to(tiny.prompt(1), boundary), 1)
    assert torch.equal(again.latents(), expected.latents())


def test_the_noise_of_the_next_block_is_drawn_while_a_block_is_computed():
    asked: dict[int, threading.Event] = {block: threading.Event() for block in range(4)}

    def draw(block: int, step: int) -> torch.Tensor:
        asked[block].set()
        return compute_noise(7, (0, step, block), (2,))

    noise = NoiseAhead(draw)
    for block in range(3):
        drawn = [noise(block, step) for step in range(4)]
        assert asked[block + 1].wait(timeout=60)
        assert all(torch.equal(drawn[step], compute_noise(7, (0, step, block), (2,))) for step in range(4))
    assert torch.equal(noise(0, 2), compute_noise(7, (0, 2, 0), (2,)))  # in any order


def test_an_error_of_drawing_reaches_the_block_that_needs_it():
    def draw(block: int, step: int) -> torch.Tensor:
        return torch.ones(1) if block == 0 else torch.ones(1) + torch.ones(-1)

    noise = NoiseAhead(draw)
    assert torch.equal(noise(0, 0), torch.ones(1))
    with pytest.raises(RuntimeError):
        noise(1, 0)


class SlowStore(Store):
    """A store on a disk that writes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write, self.begun = threading.Event(), threading.Event()

    def write(self, key: str, entry: Entry) -> None:
        self.begun.set()
        assert self.may_write.wait(timeout=60)
        super().write(key, entry)


def test_a_block_is_stored_while_the_next_one_begins_and_before_its_first_step_is_seen(monkeypatch):
    """The disk writes once the sampler waits for it, never earlier."""
    store, seen, finish = SlowStore(), [], Sampler._finish_storing

    def let_write_and_finish(sampler: Sampler) -> None:
        if store.begun.is_set():
            store.may_write.set()
        finish(sampler)

    def watch(_: Pass) -> None:
        seen.append(len(store._entries))

    monkeypatch.setattr(Sampler, "_finish_storing", let_write_and_finish)
    blocks = Sampler(MODEL, store=store, watch=watch).extend(tiny.session(), 2)
    next(blocks)
    assert store.begun.wait(timeout=60)
    assert len(store._entries) == 0  # though the block is there
    assert len(next(blocks).keys) == len(store._entries) == 2  # the last one is stored before it is yielded
    assert seen == [0] * 4 + [1] * 5


def test_an_abandoned_video_is_stored_when_its_sampler_is_closed():
    store = SlowStore()
    with Sampler(MODEL, store=store) as sampler:
        next(sampler.extend(tiny.session(), 5))
        threading.Timer(0, store.may_write.set).start()
    assert len(store._entries) == 1


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_error_of_storing_reaches_the_caller_and_spoils_no_later_video(blocks):
    class Broken(Store):
        def write(self, key: str, entry: Entry) -> None:
            raise MemoryError("no room for a copy")

    sampler, made = Sampler(MODEL, store=Broken()), []
    with pytest.raises(MemoryError, match="no room for a copy"):
        made += sampler.extend(tiny.session(), blocks)
    assert len(made) <= 1
    sampler.store = None
    video = tiny.session(seed=8)
    assert torch.equal(sampler.sample(video, 2).latents(), Sampler(MODEL).sample(video, 2).latents())
