"""The miniature's clips: a torus, labels that are true, switches that keep the place."""

import random
from dataclasses import replace

import pytest
import torch

from longlive.miniature.clips import choose_clip, choose_sky, seed_random
from longlive.miniature.grammar import Background, Colour, Motion, Scene, Shape
from longlive.miniature.world import FADE, FRAME_STEP, RADIUS, SIZE, Clip, Sky, make_grid, render_clips, wrap

SKY = Sky((0.1, 0.2, 0.3, 0.4), 0.5)


def scene(**changes) -> Scene:
    usual = {"colour": Colour.RED, "shape": Shape.RING, "motion": Motion.LEFT, "background": Background.NIGHT}
    return Scene(**usual | changes)


def clip(*scenes: tuple[int, Scene], sky: Sky = SKY) -> Clip:
    return Clip(scenes, sky)


def test_pixels_are_in_range_and_a_film_is_the_same_alone_or_in_a_batch():
    clips = [choose_clip(seed_random("test", n), (9,)) for n in range(3)]
    pixels, alpha = render_clips(clips, 13)
    assert pixels.shape == (3, 13, 3, SIZE, SIZE)
    assert alpha.shape == (3, 13, SIZE, SIZE)
    assert pixels.amin() >= -1
    assert pixels.amax() <= 1
    for n in range(3):
        torch.testing.assert_close(render_clips(clips[n : n + 1], 13)[0][0], pixels[n])


def test_what_leaves_on_the_left_comes_in_on_the_right():
    moving = clip((0, scene()))
    _, alpha = render_clips([moving], SIZE + 1)
    torch.testing.assert_close(alpha[0, 0], alpha[0, SIZE], atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha[0, 0].roll(-5, -1), alpha[0, 5], atol=1e-4, rtol=0)


def test_a_switch_keeps_the_place_and_turns_at_once():
    centres = clip((0, scene()), (5, scene(motion=Motion.UP))).locate_thing(8)
    assert centres[4:] == [(28, 32), (28, 31), (28, 30), (28, 29)]


def test_a_switch_fades_into_its_new_looks_and_is_through_after_half_a_second():
    old, new = scene(), scene(colour=Colour.BLUE, shape=Shape.SQUARE, background=Background.DAY)
    switched, _ = render_clips([clip((0, old), (9, new))], 9 + FADE + 1)
    before, _ = render_clips([clip((0, old))], 9)
    after, _ = render_clips([clip((0, new))], 9 + FADE + 1)
    torch.testing.assert_close(switched[:, :9], before)
    torch.testing.assert_close(switched[:, 8 + FADE :], after[:, 8 + FADE :])
    assert not torch.allclose(switched[:, 9], after[:, 9], atol=0.1)


@pytest.mark.parametrize(("start", "corner"), [((-1, -1), (12, 12)), ((0, 0), (32, 32)), ((1, 0), (32, 52))])
def test_a_start_is_where_the_prompt_says(start, corner):
    assert clip((0, scene(start=start))).locate_thing(1) == [corner]


@pytest.mark.parametrize("shape", Shape)
def test_far_from_the_thing_there_is_only_sky(shape):
    clips = [clip((0, scene(shape=shape)), sky=SKY), clip((0, scene(shape=shape, colour=Colour.CYAN)), sky=SKY)]
    moved = [replace(each, shift=(4 * n, 12 * n)) for each in clips for n in range(16)]
    pixels, _ = render_clips(moved, 1)
    empty = pixels[:, 0].median(0).values  # at each pixel most things are away
    x, y = make_grid()
    for each, picture in zip(moved, pixels[:, 0], strict=True):
        (centre,) = each.locate_thing(1)
        away = torch.hypot(wrap(x - centre[0]), wrap(y - centre[1])) > 2 * RADIUS + 5
        torch.testing.assert_close(picture[:, away], empty[:, away], atol=5 / 255, rtol=0)  # the end of a shadow


def test_a_thing_that_roams_begins_where_a_moving_one_can_be():
    starts = {choose_clip(seed_random("roam", n), roam=True).locate_thing(1)[0] for n in range(500)}
    assert {x % FRAME_STEP for place in starts for x in place} == {0}
    assert len(starts) > (SIZE // FRAME_STEP) ** 2 / 2


def test_skies_differ_between_films_and_stay_within_one():
    draw = random.Random(0)
    one, other = (clip((0, scene(motion=Motion.STILL)), sky=choose_sky(draw)) for _ in range(2))
    pixels, _ = render_clips([one, other], 5)
    assert (pixels[0] - pixels[1]).abs().mean() > 0.03
    torch.testing.assert_close(pixels[0, 0], pixels[0, 4])


def test_a_numbered_film_is_always_the_same_film():
    assert choose_clip(seed_random("a", 3), (9,)) == choose_clip(seed_random("a", 3), (9,))
    assert choose_clip(seed_random("a", 3), (9,)) != choose_clip(seed_random("a", 4), (9,))
