"""The draws of a chunk: counted noise, and the levels of a noisy clip."""

import torch

from longlive.tuning.dmd import ClipNoise
from longlive.tuning.draws import ChunkDraws


def test_every_video_has_its_own_noise_and_always_the_same():
    one, two = (ChunkDraws(3, 5, videos, (3, 16, 2, 4), 4, 5.0) for videos in ((0, 1), (1, 2)))
    assert torch.equal(one.draw_noise(2, 1)[1], two.draw_noise(2, 1)[0])
    assert not torch.equal(one.draw_noise(2, 1)[0], one.draw_noise(2, 1)[1])
    everything = [one.draw_noise(block, step) for block in range(3) for step in range(4)]
    everything += [one.draw_context_noise(block) for block in range(3)]
    assert len({x.sum().item() for x in everything}) == len(everything)
    assert {ChunkDraws(0, chunk, (0,), (3, 16, 2, 4), 4, 5.0).exit_step for chunk in range(40)} == {0, 1, 2, 3}


def test_a_clip_is_noised_by_the_students_shift():
    clip = torch.zeros(1, 3, 16, 2, 4)
    plain, released = (ChunkDraws(3, 5, (0,), (3, 16, 2, 4), 4, shift).draw_clip_noise(clip) for shift in (1.0, 5.0))
    x = plain.timesteps_B / 1000
    assert torch.allclose(released.timesteps_B / 1000, 5 * x / (1 + 4 * x))


def test_a_clip_is_noised_within_the_levels_of_the_method():
    levels = ClipNoise.of_index(torch.arange(1000), torch.zeros(1), shift=5.0).timesteps_B
    assert levels.min() == 20
    assert levels.max() == 980
    assert (levels.diff() >= 0).all()
