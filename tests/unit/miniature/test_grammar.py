"""The miniature's prompts: read, written, and what is said about the rest."""

import logging

import pytest
import torch

from longlive.errors import ScriptError
from longlive.miniature.grammar import (
    Background,
    Colour,
    Motion,
    Scene,
    Shape,
    find_problems,
    list_scenes,
    parse_prompt,
)
from longlive.miniature.text import MiniatureText
from longlive.model.text_encoder import HashedWords, split_words

NORTH_WEST = (-1, -1)


def test_every_scene_is_read_back_from_its_prompt_wherever_it_begins():
    for scene in list_scenes():
        for start in ((0, 0), NORTH_WEST, (1, 0), (0, 1)):
            begun = Scene(scene.colour, scene.shape, scene.motion, scene.background, start)
            assert parse_prompt(str(begun)) == begun
            assert len(split_words(str(begun))) <= 11


def test_a_prompt_reads_like_a_sentence():
    assert str(Scene(Colour.RED, Shape.RING, Motion.LEFT, Background.NIGHT)) == "a red ring moves left at night"
    still = Scene(Colour.BLUE, Shape.SQUARE, Motion.STILL, Background.DAY, NORTH_WEST)
    assert str(still) == "a blue square stays still by day from the north west"


def test_capitals_and_punctuation_do_not_matter():
    assert parse_prompt("A RED ring moves left, at night!") == parse_prompt("a red ring moves left at night")


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a red fox moves left at night", "'fox' left out of the prompt .*: the miniature knows red, .*ring"),
        ("a ring moves left at night", "names no colour; the miniature needs one colour: red, yellow"),
        ("a red blue ring moves left at night", "names blue and red; the miniature needs one colour"),
        ("", "names no colour"),
        ("a red ring moves left at night from the north south", "begins in the north and the south; choose one"),
    ],
)
def test_a_prompt_outside_the_grammar_is_named(prompt, says):
    with pytest.raises(ScriptError, match=says):
        parse_prompt(prompt)


def test_a_word_outside_the_grammar_is_left_out_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        embedding = MiniatureText()("a red fox ring moves left at night")
    assert torch.equal(embedding, HashedWords()("a red ring moves left at night"))
    assert [record.message for record in caplog.records] == find_problems("a red fox ring moves left at night")
    assert "'fox' left out" in caplog.text


def test_a_prompt_of_the_grammar_gives_no_warning(caplog):
    assert MiniatureText()("a red ring moves left at night").shape == (1, 512, 4096)
    assert not caplog.records
