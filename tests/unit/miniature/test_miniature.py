"""What the shipped miniature can do, from prompts alone and with wide margins; and that its files are as Wan's are."""

import itertools

import numpy as np
import pytest
import torch
from safetensors import safe_open

from longlive.config import RolloutConfig
from longlive.errors import WeightsError
from longlive.miniature import files
from longlive.miniature.evaluation.plan import EvaluationPlan, SwitchCase
from longlive.miniature.evaluation.switches import SeedResult
from longlive.miniature.evaluation.video_sampler import VideoSampler
from longlive.miniature.evaluation.windows import READS, WindowResult
from longlive.miniature.files import DIT, VAE, Miniature, check_present, load_miniature
from longlive.miniature.grammar import ATTRIBUTES, parse_prompt
from longlive.miniature.training.__main__ import measure_quality
from longlive.miniature.world import SIZE
from longlive.model.vae_streams import StreamingDecoder, decode
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Boundary
from longlive.session.session import Session

SEEDS = 2
MAX_BYTES = 24e6
ROLLED = EvaluationPlan().openings[-1]  # latents before a switch: more than a window
PLAN = EvaluationPlan(openings=(ROLLED,), marks=(6, 120))
MOTION = [*ATTRIBUTES].index("motion")
PROMPTS = ("a red ring moves left at night", "a blue square moves up by day", "a green triangle stays still at dusk")


@pytest.fixture(scope="module")
def miniature() -> Miniature:
    return load_miniature()


@pytest.fixture(scope="module")
def results(miniature) -> list[SeedResult]:
    return [SeedResult.sample(miniature, seed, PLAN, lambda: None) for seed in range(SEEDS)]


def measure_shares(results, boundary: Boundary, frames: slice) -> np.ndarray:
    """Average the right frames after a late switch [A]; `frames` count from a second before it."""
    return np.mean(
        [result.switches[SwitchCase(ROLLED, boundary)].right_AF[:, frames].mean(1) for result in results], axis=0
    )


def test_the_files_are_small_and_named_as_wans():
    assert DIT.stat().st_size + VAE.stat().st_size <= MAX_BYTES
    with safe_open(DIT, "pt") as model, safe_open(VAE, "pt") as vae:
        assert {model.get_slice(name).get_dtype() for name in model.keys()} == {"BF16"}
        assert model.get_slice("blocks.0.self_attn.q.weight").get_shape() == [256, 256]
        assert vae.get_slice("decoder.head.0.gamma").get_shape() == [16, 1, 1, 1]


def test_the_vae_reconstructs_clips_it_has_not_seen(miniature):
    whole, thing, likeness = measure_quality(miniature.vae, count=4)
    assert whole >= 36
    assert thing >= 30
    assert likeness >= 0.94


def test_decoding_piece_by_piece_equals_decoding_at_once(miniature):
    latents = torch.randn(1, 7, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = StreamingDecoder(miniature.vae)
    pieces = torch.cat([decoder.push(piece) for piece in latents.split([2, 1, 4], dim=1)], dim=1)
    torch.testing.assert_close(pieces, decode(miniature.vae, latents), atol=1e-4, rtol=0)


def test_after_a_recache_the_new_prompt_is_obeyed(results):
    for boundary in (Boundary.RECACHE, Boundary.RENEW):
        right_A = measure_shares(results, boundary, slice(32, None))
        assert right_A.min() >= 0.9


def test_recache_turns_sooner_than_a_kept_cache(results):
    recache, keep = (measure_shares(results, boundary, slice(16, 32)) for boundary in (Boundary.RECACHE, Boundary.KEEP))
    assert recache[MOTION] >= keep[MOTION] + 0.2


def test_recache_does_not_jump_and_leaps_less_far_than_a_cut(results):
    def leap(boundary: Boundary) -> float:
        return float(np.mean([result.switches[SwitchCase(ROLLED, boundary)].leap for result in results]))

    assert np.median([result.switches[SwitchCase(ROLLED, Boundary.RECACHE)].jump for result in results]) <= 2
    assert leap(Boundary.CUT) >= leap(Boundary.RECACHE) + 3


def test_over_five_switches_prompts_are_obeyed(results):
    for segment in range(6):
        right_A = np.mean([result.segments[segment].mean(1) for result in results], axis=0)
        assert right_A.min() >= 0.9, segment


@pytest.fixture(scope="module")
def long_videos(miniature) -> WindowResult:
    return WindowResult.sample(miniature, PLAN.released_window, SEEDS, PLAN, lambda: None)


def test_a_long_video_keeps_its_thing(long_videos):
    assert long_videos.collect_right(-1).mean(0).min() >= 0.9
    assert long_videos.collect(READS["likeness"])[:, -1].mean() >= 0.85


def test_with_a_sink_a_long_video_stays_nearer_to_its_beginning(miniature, long_videos):
    without = WindowResult.sample(miniature, (12, 0), SEEDS, PLAN, lambda: None)
    kept, lost = (window.collect(READS["sky correlation"])[:, -1].mean() for window in (long_videos, without))
    assert kept > lost + 0.1


def sample_prompts(miniature: Miniature, seed: int, *, blocks: int, samplers: int) -> Session:
    """Sample a video of three prompts, with one sampler or with a new one for every block."""
    sampler, made = Sampler(miniature.model), itertools.count()
    video = VideoSampler(miniature).start_session(parse_prompt(PROMPTS[0]), seed, RolloutConfig())
    for number, sentence in enumerate(PROMPTS):
        if number:
            video = video.switched_to(VideoSampler(miniature).make_prompt(parse_prompt(sentence)))
        for _ in range(blocks):
            if samplers > 1 and next(made):
                sampler = Sampler(miniature.model)
            video = sampler.sample(video, 1)
    return video


def test_a_timeline_equals_a_chain(miniature):
    one, many = (sample_prompts(miniature, 0, blocks=3, samplers=n).latents() for n in (1, 9))
    assert torch.equal(one, many)


def test_a_branch_does_not_disturb_its_sibling(miniature):
    def branch(sampler: VideoSampler, prompts: tuple[str, ...]) -> list[Session]:
        begun = sampler.start_video(parse_prompt(PROMPTS[0]), 0, PLAN.config, 15)
        return [sampler.switch_video(begun, parse_prompt(prompt), Boundary.RECACHE, 6).session for prompt in prompts]

    with VideoSampler(miniature) as sampler:
        first, _ = branch(sampler, PROMPTS[1:])
    with VideoSampler(miniature) as sampler:
        (again,) = branch(sampler, PROMPTS[1:2])
    assert torch.equal(first.latents(), again.latents())


def test_other_seeds_give_other_videos_and_the_same_seed_the_same(miniature):
    with VideoSampler(miniature) as sampler:
        videos = [sampler.start_video(parse_prompt(PROMPTS[0]), seed, PLAN.config, 6) for seed in (0, 1, 0)]
    one, other, again = (video.pixels_FCHW for video in videos)
    assert one.shape[1:] == (3, SIZE, SIZE)
    assert torch.equal(one, again)
    assert (one - other).abs().mean() > 1 / 255


def test_a_file_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DIT", tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match=r"gone.safetensors is missing; .* install the pack again"):
        load_miniature()
    check_present(DIT, VAE)
