"""Measures of the miniature's videos: all right on the world's own clips, and wrong where those are changed."""

from itertools import pairwise

import pytest
import torch

from longlive.miniature.clips import choose_clip, choose_sky, seed_random
from longlive.miniature.evaluation.measure import (
    MIN_AREA,
    UNKNOWN,
    correlate_skies,
    find_right_frames,
    measure_jump,
    measure_leap,
    observe,
)
from longlive.miniature.grammar import ATTRIBUTES, Background, Colour, Motion, Scene, Shape
from longlive.miniature.world import FADE, SIZE, SPEED, STEP, Clip, render_clips

SWITCH, FRAMES = 21, 45
RED_RING = Scene(Colour.RED, Shape.RING, Motion.LEFT, Background.NIGHT)
BLUE_SQUARE = Scene(Colour.BLUE, Shape.SQUARE, Motion.DOWN, Background.DAY)


@pytest.fixture(scope="module")
def clips():
    """Every shape in every colour on every background, at every start, each with a switch; and their pixels."""
    clips = [choose_clip(seed_random("measure", n), (SWITCH,)) for n in range(36)]
    return clips, render_clips(clips, FRAMES)[0]


def test_every_word_of_a_clip_is_recognised_except_while_it_fades(clips):
    for clip, pixels in zip(*clips, strict=True):
        is_right = find_right_frames(observe(pixels), clip.scenes)
        assert [*is_right] == [*ATTRIBUTES]
        for frames in is_right.values():
            assert frames[:SWITCH].all()
            assert frames[SWITCH + FADE + 1 :].all()


def test_a_thing_is_where_its_clip_says(clips):
    for clip, pixels in zip(*clips, strict=True):
        if clip.scenes[0][1].shape is not Shape.TRIANGLE:  # whose mass lies off its centre
            apart = observe(pixels[:SWITCH]).centre_F2 - torch.tensor(clip.locate_thing(SWITCH))
            assert ((apart + SIZE / 2) % SIZE - SIZE / 2).abs().amax() < 0.5


def test_a_thing_covers_its_template(clips):
    for pixels in clips[1]:
        assert observe(pixels[:SWITCH]).likeness_F.amin() > 0.85


def test_a_switch_without_a_break_is_no_jump(clips):
    for clip, pixels in zip(*clips, strict=True):
        step = SPEED * any(STEP[clip.scenes[1][1].motion])
        assert abs(measure_jump(observe(pixels), SWITCH) - step) < 0.6


def test_a_turn_at_a_switch_is_no_leap_and_a_step_too_long_for_the_thing_is_one(clips):
    for pixels in clips[1]:
        assert measure_leap(observe(pixels), SWITCH, FADE) < 3
        rolled = torch.cat([pixels[:SWITCH], pixels[SWITCH:].roll(24, -1)])
        assert measure_leap(observe(rolled), SWITCH, FADE) > 6


def test_a_thing_that_is_elsewhere_or_gone_jumps():
    pixels, _ = render_clips([Clip(((0, RED_RING),), choose_sky(seed_random("sky", 0)))], 12)
    moved = torch.cat([pixels[0, :6], pixels[0, 6:].roll(20, -1)])
    assert measure_jump(observe(moved), 6) == pytest.approx(19, abs=0.1)
    gone = torch.cat([pixels[0, :6], torch.zeros(6, 3, SIZE, SIZE)])
    assert measure_jump(observe(gone), 6) == pytest.approx(SIZE / 2**0.5)


def test_each_wrong_word_is_found():
    pixels, _ = render_clips([Clip(((0, RED_RING),), choose_sky(seed_random("sky", 0)))], 12)
    is_right = find_right_frames(observe(pixels[0]), [(0, BLUE_SQUARE)])
    assert not any(frames.any() for frames in is_right.values())
    assert observe(pixels[0].flip(0)).motion_F.unique().tolist() == [list(Motion).index(Motion.RIGHT)]


def test_without_a_thing_only_the_background_is_recognised():
    pixels = torch.full((9, 3, SIZE, SIZE), -0.8)
    seen = observe(pixels)
    assert (seen.area_F < MIN_AREA).all()
    for index in (seen.colour_F, seen.shape_F, seen.motion_F):
        assert (index == UNKNOWN).all()
    assert list(Background)[seen.background_F[0]] is Background.NIGHT
    assert not find_right_frames(seen, [(0, RED_RING)])["colour"].any()


def test_before_the_first_scene_nothing_is_right(clips):
    seen = observe(clips[1][0][:6])
    for frames in find_right_frames(seen, [(3, clips[0][0].scenes[0][1])]).values():
        assert frames.tolist() == [False] * 3 + [True] * 3


def test_a_sky_is_the_same_through_a_switch_and_another_in_another_clip(clips):
    for pixels in clips[1]:
        sky = observe(pixels).sky_FHW
        assert correlate_skies(sky[SWITCH - 1], sky[SWITCH + FADE]) > 0.95  # a thing's glow is not all hidden
    skies = [observe(pixels[:1]).sky_FHW[0] for pixels in clips[1]]
    apart = [correlate_skies(one, other) for one, other in pairwise(skies)]
    assert abs(sum(apart) / len(apart)) < 0.3
    assert correlate_skies(torch.full((2, 2), torch.nan), torch.zeros(2, 2)) == 0
