"""Over a blend the miniature's colour moves step by step to the new one, and then the new prompt is obeyed."""

import numpy as np
import pytest
import torch

from longlive.miniature.clips import choose_sky, seed_random
from longlive.miniature.evaluation import blends
from longlive.miniature.evaluation.blends import (
    BLOCK_FRAMES,
    OPENING,
    SEGMENT,
    WAYS,
    BlendResult,
    follow_colour,
    tabulate_blends,
    tabulate_colour,
)
from longlive.miniature.evaluation.plan import choose_scenes
from longlive.miniature.evaluation.switches import SwitchResult
from longlive.miniature.files import load_miniature
from longlive.miniature.world import Clip, render_clips
from longlive.session.boundary import Blend
from longlive.units import FPS, count_pixel_frames


def test_over_a_blend_the_colour_rises_in_every_block_and_the_largest_step_is_smaller(monkeypatch):
    """One seed, a linear blend; docs/switching.md has the numbers of 16 seeds."""
    monkeypatch.setattr(blends, "WAYS", {"recache": None, "blend": Blend(3)})
    recache, blend = blends.sample_blends(load_miniature(), 0).values()
    assert blend.rises
    assert 0 < blend.colour_B[1] < 0.4 < blend.colour_B[2] < 0.9 < blend.colour_B[3]
    assert blend.largest_step < 0.8 < recache.largest_step
    assert blend.switch.right_AF[:, blend.settled :].mean() > 0.95


def test_the_way_of_a_colour_is_read_from_pixels():
    """A picture that goes to white in a line, and stays."""
    light_F = torch.cat(
        [torch.zeros(9), torch.arange(1, 3 * BLOCK_FRAMES + 1) / (3 * BLOCK_FRAMES), torch.ones(2 * BLOCK_FRAMES)]
    )
    way = follow_colour(light_F[:, None, None, None].expand(-1, 3, 4, 4))
    np.testing.assert_allclose(way, [0, 0.28, 0.63, 0.96, 1, 1], atol=0.03)


def test_a_true_switch_is_right_and_one_that_comes_late_is_not():
    old, new = choose_scenes(0, 2)
    opening, whole = count_pixel_frames(OPENING), count_pixel_frames(OPENING + SEGMENT)
    results = []
    for delay in (0, 4 * BLOCK_FRAMES):
        clip = Clip(((0, old), (opening + delay, new)), choose_sky(seed_random("sky", 0)))
        pixels = render_clips([clip], whole)[0][0]
        switch = SwitchResult.of_pixels(pixels, OPENING, old, new, [0, BLOCK_FRAMES, 2 * BLOCK_FRAMES])
        result = BlendResult(switch, follow_colour(pixels), 2 * BLOCK_FRAMES + 2 * FPS)
        results.append(dict.fromkeys(WAYS, result))
    true, late = (tabulate_blends([result] * 2).as_dict()["rows"][0] for result in results)
    assert true["colour"]["value"] == true["motion"]["value"] == 1
    assert late["colour"]["value"] < 0.6
    assert true["median leap, px"]["value"] < 3
    [row, *_] = tabulate_colour([results[0]] * 2).as_dict()["rows"]
    assert row["largest step"]["value"] == pytest.approx(1, abs=0.15)
