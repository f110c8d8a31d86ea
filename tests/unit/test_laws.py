"""The laws of the design, each by its name (docs/architecture.md). Law 1: test_verify.py; 5 and 7: tests/host too."""

import gc
import random
from collections.abc import Callable, Sequence

import pytest
import tiny
import torch
from stored import read_block

from longlive.config import Positions, RolloutConfig
from longlive.errors import SamplingError
from longlive.rollout.cache_passes import CleanPass, Recache, choose_missing_passes, list_cache_passes
from longlive.rollout.kv_cache import WindowLayerKVCache
from longlive.rollout.rollout import PassKind, Rollout
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.session.prompt import mix_prompts
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session

CONFIGS = [
    RolloutConfig(),
    RolloutConfig(positions=Positions.UNBOUNDED),
    RolloutConfig(window=9, sink=0),
    RolloutConfig(window=6, sink=3),
    RolloutConfig(window=5, sink=3, block=1),
    RolloutConfig(window=20, sink=7),
    RolloutConfig(window=11, sink=4, block=2, positions=Positions.UNBOUNDED),
    RolloutConfig.roll(),
    RolloutConfig.roll(steps=(1000, 600, 200), window=15),
]
MODEL = tiny.model()


def make_story(config: RolloutConfig, *, new_sampler_every: int = 0, store: Store | None = None) -> Session:
    video, sampler, made = tiny.session(config), Sampler(MODEL, store=store), 0
    for number, (blocks, boundary) in enumerate(tiny.STORY):
        if boundary:
            video = video.switched_to(tiny.prompt(number), boundary)
        for _ in range(blocks):
            if new_sampler_every and made % new_sampler_every == 0:
                sampler = Sampler(MODEL, store=store)
            video = sampler.sample(video, 1)
            made += 1
    return video


@pytest.fixture(scope="module")
def whole() -> dict[RolloutConfig, torch.Tensor]:
    """Each video made in one go."""
    return {config: make_story(config).latents() for config in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("blocks", [1, 4])
def test_law_3_however_a_video_is_cut_into_samplers_it_is_the_same_bit_for_bit(config, blocks, whole):
    assert torch.equal(make_story(config, new_sampler_every=blocks).latents(), whole[config])


def test_law_3_a_video_answered_from_the_store_is_the_same_and_computes_nothing(tmp_path, whole, monkeypatch):
    config = CONFIGS[0]
    make_story(config, store=Store(tmp_path))
    monkeypatch.setattr(Rollout, "denoise", None)
    assert torch.equal(make_story(config, store=Store(tmp_path)).latents(), whole[config])


Decision = Callable[[Session], Session]


def draw_decisions(seed: int, config: RolloutConfig, blocks: int = 11) -> list[Decision]:
    """Draw what a director decides before each block: rewinds, new seeds, blends and mixed prompts among it."""
    draw, decisions = random.Random(seed), []
    for _ in range(blocks):
        boundary, number = draw.choice(list(Boundary)), draw.randrange(4)
        noise = draw.choice((None, None, draw.randrange(2**64)))
        blend = draw.choice((None, Blend(draw.randint(2, 4), draw.choice(list(Curve)))))
        mixed = mix_prompts((tiny.prompt(number), tiny.prompt(4)), (draw.randint(1, 3), 1))
        prompt = draw.choice((tiny.prompt(number), mixed))
        back = draw.choice((0, 0, draw.randint(1, 3)))

        def decide(video: Session, *, prompt=prompt, boundary=boundary, noise=noise, blend=blend, back=back) -> Session:
            video = video.rewound_to(max(0, video.num_frames - back * config.block))
            boundary = Boundary.RECACHE if blend else boundary
            return video.switched_to(prompt, boundary, seed=noise, blend=blend)

        decisions.append(draw.choice((decide, lambda video: video, lambda video: video)))
    return decisions


def follow(decisions: Sequence[Decision], config: RolloutConfig, make_sampler: Callable[[], Sampler]) -> Session:
    """Make a block after each decision."""
    video = tiny.session(config)
    for decide in decisions:
        video = make_sampler().sample(decide(video), 1)
    return video


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 7, 8])
def test_law_3_a_directed_video_is_the_same_bit_for_bit_however_it_is_made(seed, tmp_path):
    """With blends, seeds, weights and rewinds: by one sampler, by a new one for each block, from the store, resumed."""
    config = CONFIGS[seed % len(CONFIGS)]
    decisions = draw_decisions(seed, config)
    one = Sampler(MODEL)
    video = follow(decisions, config, lambda: one)
    assert torch.equal(follow(decisions, config, lambda: Sampler(MODEL)).latents(), video.latents())
    store = Store(tmp_path)
    stored = follow(decisions, config, lambda: Sampler(MODEL, store=store))
    resumed = follow(decisions[:7], config, lambda: Sampler(MODEL, store=Store(tmp_path)))
    save_session(resumed, tmp_path / "session")
    resumed = load_session(tmp_path / "session")
    for decide in decisions[7:]:
        resumed = Sampler(MODEL).sample(decide(resumed), 1)
    for other in (stored, resumed):
        assert torch.equal(other.latents(), video.latents())
    assert stored.keys == video.keys


def test_law_4_an_edit_within_a_blend_leaves_what_was_before_it_and_its_sibling(tmp_path):
    denoised = []
    store = Store(tmp_path)

    def make_ending(number: int, seed: int | None = None) -> Session:
        sampler = Sampler(MODEL, store=store, watch=lambda done: denoised.append((done.kind, done.place.start)))
        video = sampler.sample(tiny.session(), 4)
        video = sampler.sample(video.switched_to(tiny.prompt(1), blend=Blend(4)), 2)
        return sampler.sample(video.switched_to(tiny.prompt(number), seed=seed, blend=Blend(2)), 2)

    first = make_ending(2)
    before = first.latents().clone()
    for other in (make_ending(3), make_ending(2, seed=8)):
        assert torch.equal(other.frames(0, 18), before[:, :18])
        assert not torch.equal(other.frames(18, 6), before[:, 18:])
    assert torch.equal(first.latents(), before)
    assert sum(kind is PassKind.DENOISE for kind, _ in denoised) == 4 * (8 + 2 + 2)
    denoised.clear()
    assert torch.equal(make_ending(2).latents(), before)
    assert denoised == []


def test_law_3_a_rebuild_without_one_pass_gives_another_video(monkeypatch, whole):
    config = CONFIGS[0]
    monkeypatch.setattr(
        "longlive.rollout.sampler.choose_missing_passes", lambda *a, **k: choose_missing_passes(*a, **k)[1:]
    )
    assert not torch.equal(make_story(config, new_sampler_every=4).latents(), whole[config])


def test_law_3_a_rebuild_makes_no_more_passes_than_can_matter():
    config, layers = RolloutConfig(), 30
    video = [(0, Boundary.CUT)]
    end = 300 * config.block
    needed = Rollout(MODEL, config, (1, 16, 2, 4)).window.list_needed_slots(end, config.block)
    passes = choose_missing_passes(list_cache_passes(config, video, end), needed, layers, made=None)
    depth = (config.recent + (layers - 1) * (config.recent - config.block)) // config.block
    assert len(passes) <= depth + 1  # and the sink
    recached = [*video, (end, Boundary.RECACHE)]
    passes = choose_missing_passes(list_cache_passes(config, recached, end), needed, layers, made=None)
    assert [type(each) for each in passes] == [CleanPass, Recache]


def test_law_4_a_branch_does_not_disturb_its_sibling():
    sampler = Sampler(MODEL)
    trunk = sampler.sample(tiny.session(), 5)
    before = trunk.latents().clone()
    left = sampler.sample(trunk.switched_to(tiny.prompt(1)), 3)
    right = sampler.sample(trunk.switched_to(tiny.prompt(2)), 3)
    again = Sampler(MODEL).sample(trunk.switched_to(tiny.prompt(1)), 3)
    assert torch.equal(trunk.latents(), before)
    assert torch.equal(left.latents(), again.latents())
    assert not torch.equal(left.latents(), right.latents())


def test_law_4_editing_a_segment_leaves_earlier_ones_untouched_and_not_recomputed(tmp_path):
    computed = []
    store = Store(tmp_path)

    def edited(last: int) -> Session:
        sampler = Sampler(MODEL, store=store, watch=lambda done: computed.append(done.place.start))
        video = sampler.sample(tiny.session(), 4)
        video = sampler.sample(video.switched_to(tiny.prompt(1)), 2)
        return sampler.sample(video.switched_to(tiny.prompt(last)), 2)

    first = edited(2)
    computed.clear()
    second = edited(3)
    assert torch.equal(first.frames(0, 18), second.frames(0, 18))
    assert not torch.equal(first.frames(18, 6), second.frames(18, 6))
    denoised_from = min(start for start in computed if start >= 18)
    assert denoised_from == 18
    assert len(computed) == 2 + 4 + 1 + 4  # sink and recache, a block, its clean pass, a block


def test_law_6_unbounded_positions_are_absolute_ones_until_the_window_rolls():
    absolute, unbounded = (
        Sampler(MODEL).sample(tiny.session(RolloutConfig(positions=positions)), 6).latents() for positions in Positions
    )
    torch.testing.assert_close(absolute[:, :12], unbounded[:, :12], rtol=0, atol=0)
    assert not torch.allclose(absolute[:, 12:], unbounded[:, 12:])


def test_law_6_unbounded_positions_never_end():
    far = RolloutConfig(positions=Positions.UNBOUNDED)
    rollout = Rollout(MODEL, far, (1, 16, 2, 4))
    text = MODEL.read_prompt(tiny.prompt(0).pad())
    noise = lambda block, step: torch.ones(1, 3, 16, 2, 4)  # noqa: E731
    near_block, far_block = (rollout.denoise(start, text, noise, 0) for start in (300, 3_000_000))
    torch.testing.assert_close(near_block, far_block, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", list(Positions))
def test_law_7_no_bytes_are_held_after_a_failure_though_its_traceback_is(positions):
    """Without waiting for the garbage collector: a host may keep the error while the user tries again."""
    caches, seen = [], []

    def stop(done):
        caches.append(sampler._rollout.cache)
        seen.append([tensor[:, :1] for layer in caches[0].layers for tensor in layer.tensors])
        raise RuntimeError("out of memory")

    sampler = Sampler(MODEL, watch=stop)
    with pytest.raises(RuntimeError) as held:
        sampler.sample(tiny.session(RolloutConfig(positions=positions)), 1)
    assert held.value.__traceback__
    assert caches[0].num_bytes == 0
    assert sum(view.untyped_storage().nbytes() for view in seen[0]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_law_7_a_block_that_is_not_finite_is_reported_and_not_kept(value):
    model, store = tiny.model(), Store()
    sampler = Sampler(model, store=store)
    making = sampler.extend(tiny.session(), 4)
    next(making)
    finished = next(making)
    model.tree.head.head.bias.data[0] = value
    with pytest.raises(SamplingError, match=r"made NaN or infinity from frame 6 on, in fp32; finished blocks"):
        next(making)
    assert sampler._rollout is None
    assert read_block(store, finished.compute_next_key(model.kernel), finished.block_shape) is None
    whole = Sampler(MODEL, store=store).sample(finished, 2)
    assert torch.equal(whole.latents(), Sampler(MODEL).sample(tiny.session(), 4).latents())


def test_law_7_no_cache_is_alive_after_a_sampler_ends_or_fails():
    def alive() -> int:
        gc.collect()
        return sum(WindowLayerKVCache in type(x).__mro__ for x in gc.get_objects())

    with Sampler(MODEL) as sampler:
        video = sampler.sample(tiny.session(), 2)
        assert alive() == MODEL.geometry.num_layers
    assert alive() == 0

    def stop(_):
        raise KeyboardInterrupt

    sampler = Sampler(MODEL, watch=stop)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(video, 2)
    assert alive() == 0
