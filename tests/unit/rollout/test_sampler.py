"""The sampler: what it refuses, what its watcher sees, and the warm KV cache it hands over to the next sampler."""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from test_laws import CONFIGS

from longlive.config import TABLE_FRAMES, Positions, RolloutConfig
from longlive.errors import ConditioningError, PositionError, SessionError
from longlive.rollout.rollout import Pass, PassKind, Rollout
from longlive.rollout.sampler import Sampler, WarmCache, check_timeline, count_cache_bytes
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.session.timeline import Segment

MODEL = tiny.model()
SHORT = RolloutConfig(window=6, sink=3)


def test_context_noise_changes_the_clean_pass_and_not_the_first_block():
    plain, noisy = (Sampler(MODEL).sample(tiny.session(RolloutConfig(context_noise=level)), 2) for level in (0.0, 40.0))
    assert torch.equal(plain.blocks[0], noisy.blocks[0])
    assert not torch.allclose(plain.blocks[1], noisy.blocks[1], atol=1e-4)


def test_a_watcher_sees_every_pass_in_order():
    done: list[Pass] = []
    with Sampler(MODEL, watch=done.append) as sampler:
        video = sampler.sample(tiny.session(), 2)
        sampler.sample(video.switched_to(tiny.prompt(1)), 1)
    steps = [(PassKind.DENOISE, step) for step in range(4)]
    assert [(found.kind, found.step) for found in done] == [
        *steps,
        (PassKind.CLEAN, 0),
        *steps,
        (PassKind.RECACHE, 0),  # which writes all that a clean pass of the second block would have
        *steps,
    ]
    assert [round(found.timesteps[0], 2) for found in done[:4]] == [1000, 937.5, 833.33, 625]
    last_step = done[3]
    assert last_step.clean is not None
    assert torch.equal(last_step.clean, video.blocks[0])


def make_long_video(frames: int, config: RolloutConfig) -> Session:
    """Return a long video without computing it."""
    video = tiny.session(config)
    block = torch.zeros(video.block_shape)
    count = frames // config.block
    return replace(video, blocks=(block,) * count, keys=tuple(str(n) for n in range(count)))


def test_a_video_past_the_table_of_positions_is_refused_before_anything_is_computed():
    done: list[Pass] = []
    video = make_long_video(1020, RolloutConfig())
    with Sampler(MODEL, watch=done.append) as sampler:
        with pytest.raises(PositionError, match="frame 1026"):
            sampler.sample(video, 2)
        assert done == []
        assert sampler._rollout is None
        assert sampler.sample(video, 1).num_frames == 1023


def test_a_cut_restarts_the_positions():
    video = make_long_video(1023, RolloutConfig())
    with Sampler(MODEL) as sampler:
        with pytest.raises(PositionError):
            sampler.sample(video, 1)
        cut = video.switched_to(tiny.prompt(1), Boundary.CUT)
        assert sampler.sample(cut, 1).num_frames == 1026
        check_timeline(video, [Segment("", TABLE_FRAMES // 3, Boundary.CUT)])
        with pytest.raises(PositionError, match="frame 1026"):
            check_timeline(video, [Segment("", 341, Boundary.CUT), Segment("", 1, Boundary.KEEP)])


def test_the_last_position_of_the_table_is_a_position_like_any_other():
    config = RolloutConfig(block=1, window=4, sink=1)
    made = Sampler(MODEL).sample(make_long_video(TABLE_FRAMES - 1, config), 1)
    assert made.num_frames == TABLE_FRAMES
    assert made.blocks[-1].isfinite().all()


def test_a_prompt_of_another_width_is_refused_and_leaves_the_sampler_empty():
    wide = Prompt.of(torch.randn(1, 4, tiny.TEXT_DIM + 1))
    message = "the prompt embedding is 11 wide, but this model reads 10; encode the prompt with the model's own"
    sampler = Sampler(MODEL)
    with pytest.raises(ConditioningError, match=message):
        sampler.sample(tiny.session().switched_to(wide), 1)
    assert sampler._rollout is None
    assert sampler.sample(tiny.session(), 1).num_frames == 3


def test_a_session_without_a_prompt_or_of_another_model_is_refused():
    video = tiny.session()
    with pytest.raises(SessionError, match="has no prompt yet"):
        Sampler(MODEL).sample(replace(video, switches=()), 1)
    with pytest.raises(SessionError, match=r"16 channels of bf16, but .* 16 channels of fp32"):
        Sampler(MODEL).sample(replace(video, dtype=torch.bfloat16), 1)
    with pytest.raises(SessionError, match="are 48 channels"):
        Sampler(MODEL).sample(replace(video, channels=48), 1)


def sample_warm(
    video: Session, blocks: int, take: Callable[[], WarmCache | None] = lambda: None
) -> tuple[Session, WarmCache]:
    """Extend the video with a new sampler; return it and the KV cache handed over."""
    sampler = Sampler(MODEL, take=take)
    longer = sampler.sample(video, blocks)
    warm = sampler.hand_over()
    assert warm
    return longer, warm


def list_attended(rollout: Rollout, video: Session) -> list[torch.Tensor]:
    """Return what the newest block of a video attended, layer by layer."""
    window, block = rollout.window, video.config.block
    start = video.num_frames - video.origin - block
    slots = sorted(window.place_block(start, block).attended_slots | window.list_needed_slots(start, block))
    found = []
    for layer in rollout.cache.layers:
        keys, values = (x.unflatten(1, (window.size, -1)) for x in (layer.k_BSNH, layer.v_BSNH))
        tokens = layer.k_BSNH.shape[1] // window.size * sum(slot < window.sink for slot in slots)
        found += [keys[:, slots], values[:, slots], *(unturned[:, :tokens] for unturned in layer.tensors[2:])]
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_cache_taken_over_holds_what_a_rebuilt_one_holds_bit_for_bit(config):
    """Before every block of a video with every boundary."""
    video, warm = sample_warm(tiny.session(config), 1)
    for number, (blocks, boundary) in enumerate(tiny.STORY):
        video = video.switched_to(tiny.prompt(number), boundary) if boundary else video
        for _ in range(blocks):
            cache = warm.cache
            with Sampler(MODEL, take=lambda held=warm: held) as sampler, Sampler(MODEL) as rebuilt:
                longer, again = sampler.sample(video, 1), rebuilt.sample(video, 1)
                assert sampler._rollout.cache is cache
                for own, other in zip(
                    list_attended(sampler._rollout, longer),
                    list_attended(rebuilt._rollout, again),
                    strict=True,
                ):
                    assert torch.equal(own, other)
                assert torch.equal(longer.blocks[-1], again.blocks[-1])
                video, warm = longer, sampler.hand_over()


def sample_chain(model, samplers: int, blocks: int, boundary: Boundary | None = None) -> tuple[Session, int]:
    """Make a video by so many samplers, each of which hands its KV cache to the next; count their passes."""
    done, video, warm = [], tiny.session(), None
    for number in range(samplers):
        if boundary:
            video = video.switched_to(tiny.prompt(number), boundary)
        sampler = Sampler(model, take=lambda held=warm: held, watch=done.append)
        video = sampler.sample(video, blocks)
        warm = sampler.hand_over()
    return video, len(done)


def test_a_chain_of_twenty_makes_the_passes_of_one_sampler():
    """At the depth of the released model, where a rebuild takes up to 61 passes."""
    deep = tiny.model(replace(tiny.GEOMETRY, num_layers=30))
    chain, passes = sample_chain(deep, 20, 1)
    whole, of_one = sample_chain(deep, 1, 20)

    assert passes == of_one == 20 * 4 + 19
    assert torch.equal(chain.latents(), whole.latents())


@pytest.mark.parametrize("boundary", list(Boundary))
def test_a_chain_of_switches_makes_no_pass_twice(boundary):
    done, video, sampler = [], tiny.session(), Sampler(MODEL, watch=lambda step: done.append(step))
    for number in range(20):
        video = sampler.sample(video.switched_to(tiny.prompt(number), boundary), 2)
    chain, passes = sample_chain(MODEL, 20, 2, boundary)

    assert passes == len(done)
    assert torch.equal(chain.latents(), video.latents())


def remake(video: Session) -> Session:
    """Return a video with the same keys, but with latents from elsewhere."""
    return replace(video, blocks=tuple(block.clone() for block in video.blocks))


OTHERS = {  # videos that the KV cache of `tip`, which continues `trunk`, cannot serve
    "a branch": lambda trunk, tip: trunk.switched_to(tiny.prompt(2)),
    "its trunk": lambda trunk, tip: trunk,
    "rewound": lambda trunk, tip: tip.rewound_to(9),
    "loaded": lambda trunk, tip: remake(tip),
    "another seed": lambda trunk, tip: tiny.session(SHORT, seed=8),
    "another size": lambda trunk, tip: tiny.session(SHORT, width=64),
    "other options": lambda trunk, tip: tiny.session(replace(SHORT, context_noise=1)),
    "other weights": lambda trunk, tip: replace(tip, model="other weights"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_cache_of_another_video_is_freed_and_not_used(other):
    trunk, first = sample_warm(tiny.session(SHORT), 4)
    tip, warm = sample_warm(trunk.switched_to(tiny.prompt(1)), 2, lambda: first)
    video, freed = other(trunk, tip), []
    sampler = Sampler(MODEL, take=lambda: warm, prepare=lambda held: freed.append((held, warm.cache.num_bytes)))

    made = sampler.sample(video, 2)
    own = sampler._rollout.cache.num_bytes
    assert freed == [(0, 0), (own, 0)]  # before another is allocated
    assert sampler._rollout.cache is not warm.cache
    assert torch.equal(made.latents(), Sampler(MODEL).sample(video, 2).latents())


def test_the_cache_of_another_kernel_is_freed_and_not_used():
    video, warm = sample_warm(tiny.session(SHORT), 2)
    Sampler(replace(MODEL, kernel="rounds otherwise"), take=lambda: warm).sample(video, 1)

    assert warm.cache.num_bytes == 0


@pytest.mark.parametrize("positions", list(Positions))
def test_room_is_asked_only_for_what_is_not_there(positions):
    config, asked = RolloutConfig(positions=positions), []
    video, warm = sample_warm(tiny.session(config), 2)
    Sampler(MODEL, take=lambda: warm, prepare=asked.append).sample(video, 2)
    Sampler(MODEL, prepare=asked.append).sample(video, 2)

    whole = count_cache_bytes(MODEL, config, video.height, video.width)
    assert asked == [whole, whole, 0, whole]


def test_room_is_asked_before_every_block_that_is_computed_and_for_no_other(tmp_path):
    events = []
    sampler = Sampler(
        MODEL,
        store=Store(tmp_path),
        prepare=lambda _: events.append("room"),
        watch=lambda done: events.append(done.kind.name),
        on_found=lambda: events.append("found"),
    )
    sampler.sample(sampler.sample(tiny.session(), 1).switched_to(tiny.prompt(1)), 1)
    denoised = ["DENOISE"] * 4
    assert events == ["room", *denoised, "room", "RECACHE", *denoised]
    events.clear()
    sampler.sample(tiny.session(), 2)
    assert events == ["found", "room", "CLEAN", *denoised]


def test_a_sampler_that_handed_its_cache_over_holds_nothing():
    sampler = Sampler(MODEL)
    video = sampler.sample(tiny.session(), 2)
    texts = list(sampler._text_keys.values())
    warm = sampler.hand_over()
    held = warm.cache.num_bytes

    assert all(tensor.untyped_storage().nbytes() == 0 for text in texts for layer in text.layers for tensor in layer)
    assert sampler.hand_over() is None
    assert warm.cache.num_bytes == held > 0
    assert sampler.sample(video, 1).num_frames == 9


def test_a_video_found_in_the_store_leaves_the_warm_cache_where_it_is(tmp_path):
    Sampler(MODEL, store=Store(tmp_path)).sample(tiny.session(), 3)
    taken = []
    sampler = Sampler(MODEL, store=Store(tmp_path), take=lambda: taken.append(1))

    assert sampler.sample(tiny.session(), 3).num_frames == 9
    assert taken == []
    assert sampler.hand_over() is None


def test_a_warm_cache_does_not_keep_the_latents_of_its_video_alive():
    video, warm = sample_warm(tiny.session(), 2)
    del video
    gc.collect()

    assert [block() for block in warm.trace.blocks] == [None, None]


@pytest.mark.parametrize("fails", ["pass", "room"])
def test_law_7_a_cache_taken_over_is_freed_when_the_sampler_fails(fails):
    def fail(*_) -> None:
        raise RuntimeError("out of memory")

    video, warm = sample_warm(tiny.session(), 2)
    when = {"watch": fail} if fails == "pass" else {"prepare": fail}
    sampler = Sampler(MODEL, take=lambda: warm, **when)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler.sample(video, 1)

    assert warm.cache.num_bytes == 0
    assert sampler.hand_over() is None


def test_a_rebuild_is_logged_with_its_passes(caplog):
    caplog.set_level("INFO", logger="longlive.rollout.sampler")
    video, warm = sample_warm(tiny.session(), 3)
    Sampler(MODEL, take=lambda: warm).sample(video, 2)
    assert "rebuilt" not in caplog.text
    Sampler(MODEL).sample(video, 1)
    assert "the KV cache of the video is rebuilt: 3 passes" in caplog.text
