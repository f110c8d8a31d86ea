"""Streams know the truth for ever, and find their place in it."""

from dataclasses import replace

import pytest
import torch

from longlive.config import RolloutConfig
from longlive.miniature.clips import choose_clip, seed_random
from longlive.miniature.training.bank import FRAMES
from longlive.miniature.training.lessons import (
    CELLS,
    GEOMETRY,
    LOST,
    PERIOD,
    SETTLED,
    STREAMED,
    weigh,
)
from longlive.miniature.training.network import start_rollout
from longlive.miniature.training.streams import RECENT, VideoStream, find_periodic
from longlive.miniature.world import render_clips
from longlive.model.causal import CausalWan
from longlive.model.wan import WanModel
from longlive.units import count_pixel_frames

LONG = 64  # latents


@pytest.mark.parametrize("pattern", [(), STREAMED])
def test_law_a_film_goes_on_as_the_latents_that_are_taken_for_it(pattern):
    clips = [
        choose_clip(seed_random("endless", n), tuple(map(count_pixel_frames, pattern)), roam=True) for n in range(3)
    ]
    pixels, _ = render_clips(clips, count_pixel_frames(LONG))
    frames = torch.arange(1, LONG)
    taken = find_periodic(pattern, frames)
    assert taken.max() < (STREAMED[-1] + SETTLED + PERIOD if pattern else FRAMES)
    assert torch.equal(taken[:20], frames[:20])
    for latent, same in zip(frames.tolist(), taken.tolist(), strict=True):
        one, other = (pixels[:, 4 * n - 3 : 4 * n + 1] for n in (latent, same))  # the pixel frames of a latent
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def make_stream(end: int) -> VideoStream:
    wan = CausalWan.of_tree(WanModel(replace(GEOMETRY, num_layers=1)))
    return VideoStream(
        (), [0, 1], 240, start_rollout(wan, RolloutConfig(), 2), end, torch.empty(0), torch.zeros(2).long()
    )


def test_the_truth_is_shifted_to_what_each_video_shows_and_the_shift_is_remembered():
    films = torch.randn(2, FRAMES, 16, *CELLS, generator=torch.Generator().manual_seed(0))
    stream, ahead = make_stream(60), torch.tensor([2, -1])
    stream.latents = stream.find_truth(films, ahead)
    for _ in range(2):  # a visit shifts the truth by one latent at most
        truth = stream.align(films)
    assert stream.shifts_B.tolist() == ahead.tolist()
    assert torch.equal(truth, stream.latents)


def test_a_stream_keeps_its_first_latents_and_its_newest():
    stream = make_stream(3)
    numbers = torch.arange(LONG, dtype=torch.float32)[None, :, None, None, None].expand(2, LONG, 16, *CELLS)
    stream.latents = numbers[:, :3]
    for start in range(3, 60, 3):
        stream.add(numbers[:, start : start + 3])
    assert stream.end == 60
    assert stream.latents[0, :, 0, 0, 0].tolist() == [0, 1, 2, *range(60 - RECENT, 60)]


def test_a_lost_video_weighs_nothing():
    near, far = torch.full((1, 6, 16, 8, 8), 0.9 * LOST), torch.full((1, 6, 16, 8, 8), 1.1 * LOST)
    assert weigh(torch.cat([near, far])).tolist() == [1, 0]
