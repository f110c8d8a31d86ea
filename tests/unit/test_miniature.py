"""What the shipped miniature can do, from prompts alone and with wide margins; and that its files are as Wan's are."""

import itertools

import numpy as np
import pytest
import torch
from safetensors import safe_open

from longlive.config import RolloutConfig
from longlive.errors import CheckpointError
from longlive.miniature import files
from longlive.miniature.claims import CONFIG, OPENINGS, Endurance, Story
from longlive.miniature.files import DIT, VAE, Miniature, load_miniature, present
from longlive.miniature.grammar import ATTRIBUTES, parse
from longlive.miniature.stage import Stage, Take
from longlive.miniature.training.__main__ import quality
from longlive.miniature.world import SIZE
from longlive.model.vae import StreamingDecoder, decode
from longlive.sampler import Sampler
from longlive.session import Session
from longlive.timeline import Boundary

SEEDS = 3
MAX_BYTES = 24e6
ROLLED = OPENINGS[-1]  # latents before a switch: more than a window
COLOUR, BACKGROUND = ([*ATTRIBUTES].index(name) for name in ("colour", "background"))
STORY = ("a red ring moves left at night", "a blue square moves up by day", "a green triangle stays still at dusk")


@pytest.fixture(scope="module")
def miniature() -> Miniature:
    return load_miniature()


@pytest.fixture(scope="module")
def stories(miniature) -> list[Story]:
    return [Story.told(miniature, seed, lambda: None) for seed in range(SEEDS)]


def after(stories, boundary: Boundary, frames: slice) -> np.ndarray:
    """The share of frames right after a late switch, by attribute [A]; `frames` count from a second before it."""
    return np.mean([story.switches[ROLLED, boundary].right_AF[:, frames].mean(1) for story in stories], axis=0)


def test_the_files_are_small_and_named_as_wans():
    assert DIT.stat().st_size + VAE.stat().st_size <= MAX_BYTES
    with safe_open(DIT, "pt") as model, safe_open(VAE, "pt") as vae:
        assert {model.get_slice(name).get_dtype() for name in model.keys()} == {"BF16"}
        assert model.get_slice("blocks.0.self_attn.q.weight").get_shape() == [256, 256]
        assert vae.get_slice("decoder.head.0.gamma").get_shape() == [16, 1, 1, 1]


def test_the_vae_keeps_films_it_has_not_seen(miniature):
    whole, thing = quality(miniature.vae, count=4)
    assert whole >= 32
    assert thing >= 27


def test_decoding_piece_by_piece_equals_decoding_at_once(miniature):
    latents = torch.randn(1, 7, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = StreamingDecoder(miniature.vae)
    pieces = torch.cat([decoder.push(piece) for piece in latents.split([2, 1, 4], dim=1)], dim=1)
    torch.testing.assert_close(pieces, decode(miniature.vae, latents), atol=1e-4, rtol=0)


def test_after_a_recache_the_new_prompt_is_obeyed(stories):
    for boundary in (Boundary.RECACHE, Boundary.RENEW):
        right_A = after(stories, boundary, slice(32, None))
        assert right_A[COLOUR] >= 0.8
        assert right_A[BACKGROUND] >= 0.9


def test_recache_obeys_sooner_than_a_memory_kept(stories):
    first = slice(16, 32)
    assert after(stories, Boundary.RECACHE, first)[COLOUR] >= after(stories, Boundary.KEEP, first)[COLOUR] + 0.2


def test_recache_does_not_jump_and_leaps_less_far_than_a_cut(stories):
    def leap(boundary: Boundary) -> float:
        return float(np.mean([story.switches[ROLLED, boundary].leap for story in stories]))

    assert np.median([story.switches[ROLLED, Boundary.RECACHE].jump for story in stories]) <= 2
    assert leap(Boundary.DISCARD) >= leap(Boundary.RECACHE) + 3


def test_over_five_switches_prompts_are_obeyed(stories):
    for segment in range(6):
        right_A = np.mean([story.after_a_second(segment).mean(1) for story in stories], axis=0)
        assert right_A[COLOUR] >= 0.7, segment
        assert right_A[BACKGROUND] >= 0.8, segment


def test_with_a_sink_a_long_video_stays_nearer_to_its_beginning(miniature):
    longs = [Endurance.of(miniature, size, SEEDS, lambda: None) for size in ((12, 3), (12, 0))]
    with_sink, without = (long.each(lambda glance: glance.sky)[:, -1].mean() for long in longs)
    assert with_sink > without


def told(miniature: Miniature, seed: int, *, blocks: int, samplers: int) -> Session:
    """A story of three prompts, by one sampler or by one for every block."""
    sampler, made = Sampler(miniature.model), itertools.count()
    video = Stage(miniature, lambda: None).begun(parse(STORY[0]), seed, RolloutConfig())
    for number, sentence in enumerate(STORY):
        if number:
            video = video.switched_to(Stage(miniature, lambda: None).prompt(parse(sentence)))
        for _ in range(blocks):
            if samplers > 1 and next(made):
                sampler = Sampler(miniature.model)
            video = sampler.extended(video, 1)
    return video


def test_a_timeline_equals_a_chain(miniature):
    one, many = (told(miniature, 0, blocks=3, samplers=n).latents() for n in (1, 9))
    assert torch.equal(one, many)


def test_a_branch_does_not_disturb_its_sibling(miniature):
    with Stage(miniature, lambda: None) as stage:
        begun = stage.longer(Take(stage.begun(parse(STORY[0]), 0, CONFIG)), 15)
        first = stage.switched(begun, parse(STORY[1]), Boundary.RECACHE, 6)
        stage.switched(begun, parse(STORY[2]), Boundary.RECACHE, 6)
    with Stage(miniature, lambda: None) as stage:
        begun = stage.longer(Take(stage.begun(parse(STORY[0]), 0, CONFIG)), 15)
        again = stage.switched(begun, parse(STORY[1]), Boundary.RECACHE, 6)
    assert torch.equal(first.session.latents(), again.session.latents())


def test_other_seeds_give_other_videos_and_the_same_seed_the_same(miniature):
    with Stage(miniature, lambda: None) as stage:
        takes = [stage.longer(Take(stage.begun(parse(STORY[0]), seed, CONFIG)), 6) for seed in (0, 1, 0)]
    one, other, again = (take.pixels_FCHW for take in takes)
    assert one.shape[1:] == (3, SIZE, SIZE)
    assert torch.equal(one, again)
    assert (one - other).abs().mean() > 1 / 255


def test_a_file_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DIT", tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"gone.safetensors is missing; .* install the pack again"):
        load_miniature()
    present(DIT, VAE)
