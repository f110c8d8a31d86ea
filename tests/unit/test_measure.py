"""Measures of the miniature's videos: all right on the world's own films, and wrong where those are changed."""

from itertools import pairwise

import pytest
import torch

from longlive.miniature.films import numbered, random_film, random_sky
from longlive.miniature.grammar import ATTRIBUTES, Background, Colour, Motion, Scene, Shape
from longlive.miniature.measure import FEWEST, NOTHING, jump, leap, observed, right, sky_correlation
from longlive.miniature.world import FADE, SIZE, SPEED, STEP, Film, render

SWITCH, FRAMES = 21, 45
RED_RING = Scene(Colour.RED, Shape.RING, Motion.LEFT, Background.NIGHT)
BLUE_SQUARE = Scene(Colour.BLUE, Shape.SQUARE, Motion.DOWN, Background.DAY)


@pytest.fixture(scope="module")
def films():
    """Every shape in every colour on every background, at every start, each with a switch; and their pixels."""
    films = [random_film(numbered("measure", n), (SWITCH,)) for n in range(36)]
    return films, render(films, FRAMES)[0]


def test_every_word_of_a_film_is_seen_but_while_it_fades(films):
    for film, pixels in zip(*films, strict=True):
        is_right = right(observed(pixels), film.scenes)
        assert [*is_right] == [*ATTRIBUTES]
        for frames in is_right.values():
            assert frames[:SWITCH].all()
            assert frames[SWITCH + FADE + 1 :].all()


def test_a_thing_is_where_its_film_says(films):
    for film, pixels in zip(*films, strict=True):
        if film.scenes[0][1].shape is not Shape.TRIANGLE:  # whose mass lies off its centre
            apart = observed(pixels[:SWITCH]).centre_F2 - torch.tensor(film.centres(SWITCH))
            assert ((apart + SIZE / 2) % SIZE - SIZE / 2).abs().amax() < 0.5


def test_a_thing_covers_its_template(films):
    for pixels in films[1]:
        assert observed(pixels[:SWITCH]).likeness_F.amin() > 0.85


def test_a_switch_without_a_break_is_no_jump(films):
    for film, pixels in zip(*films, strict=True):
        step = SPEED * any(STEP[film.scenes[1][1].motion])
        assert abs(jump(observed(pixels), SWITCH) - step) < 0.6


def test_a_turn_at_a_switch_is_no_leap_and_a_way_that_cannot_be_walked_is_one(films):
    for pixels in films[1]:
        assert leap(observed(pixels), SWITCH, FADE) < 3
        rolled = torch.cat([pixels[:SWITCH], pixels[SWITCH:].roll(24, -1)])
        assert leap(observed(rolled), SWITCH, FADE) > 6


def test_a_thing_that_is_elsewhere_or_gone_jumps():
    pixels, _ = render([Film(((0, RED_RING),), random_sky(numbered("sky", 0)))], 12)
    moved = torch.cat([pixels[0, :6], pixels[0, 6:].roll(20, -1)])
    assert jump(observed(moved), 6) == pytest.approx(19, abs=0.1)
    gone = torch.cat([pixels[0, :6], torch.zeros(6, 3, SIZE, SIZE)])
    assert jump(observed(gone), 6) == pytest.approx(SIZE / 2**0.5)


def test_each_wrong_word_is_found():
    pixels, _ = render([Film(((0, RED_RING),), random_sky(numbered("sky", 0)))], 12)
    is_right = right(observed(pixels[0]), [(0, BLUE_SQUARE)])
    assert not any(frames.any() for frames in is_right.values())
    assert observed(pixels[0].flip(0)).motion_F.unique().tolist() == [list(Motion).index(Motion.RIGHT)]


def test_where_nothing_is_there_only_the_background_can_be_told():
    pixels = torch.full((9, 3, SIZE, SIZE), -0.8)
    seen = observed(pixels)
    assert (seen.area_F < FEWEST).all()
    for index in (seen.colour_F, seen.shape_F, seen.motion_F):
        assert (index == NOTHING).all()
    assert list(Background)[seen.background_F[0]] is Background.NIGHT
    assert not right(seen, [(0, RED_RING)])["colour"].any()


def test_before_the_first_scene_nothing_is_right(films):
    seen = observed(films[1][0][:6])
    for frames in right(seen, [(3, films[0][0].scenes[0][1])]).values():
        assert frames.tolist() == [False] * 3 + [True] * 3


def test_a_sky_is_the_same_through_a_switch_and_another_in_another_film(films):
    for pixels in films[1]:
        sky = observed(pixels).sky_FHW
        assert sky_correlation(sky[SWITCH - 1], sky[SWITCH + FADE]) > 0.95  # a thing's glow is not all hidden
    skies = [observed(pixels[:1]).sky_FHW[0] for pixels in films[1]]
    apart = [sky_correlation(one, other) for one, other in pairwise(skies)]
    assert abs(sum(apart) / len(apart)) < 0.3
    assert sky_correlation(torch.full((2, 2), torch.nan), torch.zeros(2, 2)) == 0
