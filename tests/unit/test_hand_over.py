"""A memory handed from one sampler to the next is what the next would have rebuilt, or it is not used."""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from test_laws import CONFIGS

from longlive.config import Positions, RolloutConfig
from longlive.rollout import Rollout
from longlive.sampler import Sampler, Warm, memory_bytes
from longlive.session import Session
from longlive.store import Store
from longlive.timeline import Boundary

MODEL = tiny.model()
SHORT = RolloutConfig(window=6, sink=3)


def warm_after(video: Session, blocks: int, take: Callable[[], Warm | None] = lambda: None) -> tuple[Session, Warm]:
    """The video made longer by a sampler of its own, and the memory that it hands over."""
    sampler = Sampler(MODEL, take=take)
    longer = sampler.extended(video, blocks)
    warm = sampler.hand_over()
    assert warm
    return longer, warm


def depended_on(rollout: Rollout, video: Session) -> list[torch.Tensor]:
    """All that the newest block of a video attended, layer by layer."""
    newest = rollout.window.block(video.num_frames - video.origin - video.config.block, video.config.block)
    tokens = rollout.memory.layers[0].k_BSNH.shape[1] // rollout.window.size
    return [tensor[:, : newest.filled * tokens] for layer in rollout.memory.layers for tensor in layer.tensors]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_memory_taken_over_holds_what_a_rebuilt_one_holds_bit_for_bit(config):
    """Before every block of a story with every boundary."""
    video, warm = warm_after(tiny.session(config), 1)
    for number, (blocks, boundary) in enumerate(tiny.STORY):
        video = video.switched_to(tiny.prompt(number), boundary) if boundary else video
        for _ in range(blocks):
            memory = warm.memory
            with Sampler(MODEL, take=lambda held=warm: held) as sampler, Sampler(MODEL) as rebuilt:
                longer, anew = sampler.extended(video, 1), rebuilt.extended(video, 1)
                assert sampler._rollout.memory is memory
                for own, other in zip(
                    depended_on(sampler._rollout, longer), depended_on(rebuilt._rollout, anew), strict=True
                ):
                    assert torch.equal(own, other)
                assert torch.equal(longer.blocks[-1], anew.blocks[-1])
                video, warm = longer, sampler.hand_over()


def passes_of_chain(model, samplers: int, blocks: int, boundary: Boundary | None = None) -> tuple[Session, int]:
    """A video by so many samplers, each of which hands its memory to the next; how many passes they made."""
    done, video, warm = [], tiny.session(), None
    for number in range(samplers):
        if boundary:
            video = video.switched_to(tiny.prompt(number), boundary)
        sampler = Sampler(model, take=lambda held=warm: held, watch=done.append)
        video = sampler.extended(video, blocks)
        warm = sampler.hand_over()
    return video, len(done)


def test_a_chain_of_twenty_makes_the_passes_of_one_sampler():
    """At the depth of the released model, where a rebuild takes up to 61 passes."""
    deep = tiny.model(replace(tiny.GEOMETRY, num_layers=30))
    chain, passes = passes_of_chain(deep, 20, 1)
    whole, of_one = passes_of_chain(deep, 1, 20)

    assert passes == of_one == 20 * 4 + 19
    assert torch.equal(chain.latents(), whole.latents())


@pytest.mark.parametrize("boundary", list(Boundary))
def test_a_chain_of_switches_makes_no_pass_twice(boundary):
    done, video, sampler = [], tiny.session(), Sampler(MODEL, watch=lambda step: done.append(step))
    for number in range(20):
        video = sampler.extended(video.switched_to(tiny.prompt(number), boundary), 2)
    chain, passes = passes_of_chain(MODEL, 20, 2, boundary)

    assert passes == len(done)
    assert torch.equal(chain.latents(), video.latents())


def remade(video: Session) -> Session:
    """The same keys, but latents that came from elsewhere."""
    return replace(video, blocks=tuple(block.clone() for block in video.blocks))


OTHERS = {  # videos that a memory of `tip`, which goes on from `trunk`, cannot serve
    "a branch": lambda trunk, tip: trunk.switched_to(tiny.prompt(2)),
    "its trunk": lambda trunk, tip: trunk,
    "rewound": lambda trunk, tip: tip.rewound_to(9),
    "loaded": lambda trunk, tip: remade(tip),
    "another seed": lambda trunk, tip: tiny.session(SHORT, seed=8),
    "another size": lambda trunk, tip: tiny.session(SHORT, width=64),
    "other options": lambda trunk, tip: tiny.session(replace(SHORT, context_noise=1)),
    "other weights": lambda trunk, tip: replace(tip, model="other weights"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_memory_of_another_video_is_freed_and_not_used(other):
    trunk, first = warm_after(tiny.session(SHORT), 4)
    tip, warm = warm_after(trunk.switched_to(tiny.prompt(1)), 2, lambda: first)
    video, freed = other(trunk, tip), []
    sampler = Sampler(MODEL, take=lambda: warm, prepare=lambda held: freed.append((held, warm.memory.num_bytes)))

    made = sampler.extended(video, 2)
    assert freed == [(0, 0)]  # before another is allocated
    assert sampler._rollout.memory is not warm.memory
    assert torch.equal(made.latents(), Sampler(MODEL).extended(video, 2).latents())


def test_the_memory_of_another_kernel_is_freed_and_not_used():
    video, warm = warm_after(tiny.session(SHORT), 2)
    Sampler(replace(MODEL, kernel="rounds otherwise"), take=lambda: warm).extended(video, 1)

    assert warm.memory.num_bytes == 0


@pytest.mark.parametrize("positions", list(Positions))
def test_room_is_asked_only_for_what_is_not_there(positions):
    config, asked = RolloutConfig(positions=positions), []
    video, warm = warm_after(tiny.session(config), 2)
    Sampler(MODEL, take=lambda: warm, prepare=asked.append).extended(video, 2)
    Sampler(MODEL, prepare=asked.append).extended(video, 2)

    assert asked == [memory_bytes(MODEL, config, video.height, video.width), 0]


def test_a_sampler_that_handed_its_memory_over_holds_nothing():
    sampler = Sampler(MODEL)
    video = sampler.extended(tiny.session(), 2)
    texts = list(sampler._texts.values())
    warm = sampler.hand_over()
    held = warm.memory.num_bytes

    assert all(tensor.untyped_storage().nbytes() == 0 for text in texts for layer in text.layers for tensor in layer)
    assert sampler.hand_over() is None
    assert warm.memory.num_bytes == held > 0
    assert sampler.extended(video, 1).num_frames == 9


def test_a_video_found_in_the_store_leaves_the_warm_memory_where_it_is(tmp_path):
    Sampler(MODEL, store=Store(tmp_path)).extended(tiny.session(), 3)
    taken = []
    sampler = Sampler(MODEL, store=Store(tmp_path), take=lambda: taken.append(1))

    assert sampler.extended(tiny.session(), 3).num_frames == 9
    assert taken == []
    assert sampler.hand_over() is None


def test_a_warm_memory_does_not_keep_the_latents_of_its_video_alive():
    video, warm = warm_after(tiny.session(), 2)
    del video
    gc.collect()

    assert [block() for block in warm.past.blocks] == [None, None]


@pytest.mark.parametrize("fails", ["pass", "room"])
def test_law_7_a_memory_taken_over_is_freed_when_the_sampler_fails(fails):
    def fail(*_) -> None:
        raise RuntimeError("out of memory")

    video, warm = warm_after(tiny.session(), 2)
    when = {"watch": fail} if fails == "pass" else {"prepare": fail}
    sampler = Sampler(MODEL, take=lambda: warm, **when)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler.extended(video, 1)

    assert warm.memory.num_bytes == 0
    assert sampler.hand_over() is None


def test_a_rebuild_is_logged_with_its_passes(caplog):
    caplog.set_level("INFO", logger="longlive.sampler")
    video, warm = warm_after(tiny.session(), 3)
    Sampler(MODEL, take=lambda: warm).extended(video, 2)
    assert "rebuilt" not in caplog.text
    Sampler(MODEL).extended(video, 1)
    assert "the memory of the video is rebuilt: 3 passes" in caplog.text
