"""A contact sheet: which frames it takes, and that it names every segment."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "nodes" / "host" / "contact_sheet.py"  # needs no ComfyUI, unlike its package
BLOCK, SECOND = 12, 16


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("contact_sheet", PATH)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def fill(module, num_frames: int, size: int = 32):
    sheet = module.ContactSheet(num_frames, SECOND)
    for first in range(0, num_frames, BLOCK):
        sheet.add(torch.zeros(min(BLOCK, num_frames - first), size, size, 3, dtype=torch.uint8), first)
    return sheet


def test_there_is_a_still_for_each_second(module):
    sheet = fill(module, 105)
    assert [still.frame for still in sheet.stills] == list(range(0, 105, SECOND))
    assert {still.picture.size for still in sheet.stills} == {(128, 128)}


def test_a_long_video_has_no_more_stills_than_fit(module):
    stills = fill(module, 1000 * SECOND, size=2).stills
    assert len(stills) <= module.MAX_STILLS
    assert {after.frame - still.frame for still, after in pairwise(stills)} == {5 * SECOND}


def test_each_segment_has_its_caption_also_one_without_a_still(module):
    captions = [
        module.Caption(0, "start", "one"),
        module.Caption(33, "keep", "two"),
        module.Caption(45, "cut", "three"),
    ]
    sheet = fill(module, 105)
    assert [[still.frame for still in sheet._list_stills(each, captions)] for each in captions] == [
        [0, 16, 32],
        [],
        [48, 64, 80, 96],
    ]
    picture = sheet.draw(captions)
    fewer = sheet.draw(captions[:1])
    assert picture.width < fewer.width  # a row is as long as the longest segment needs
    assert picture.height > fewer.height


def test_a_still_with_a_fault_has_a_red_frame(module):
    captions = [module.Caption(0, "start", "one")]
    sheet = fill(module, 105)
    fault_colour = tuple(bytes.fromhex(module.FAULT_COLOUR[1:]))
    colours = [
        dict(map(reversed, picture.getcolors(1 << 16)))
        for picture in (sheet.draw(captions), sheet.draw(captions, [20]))
    ]
    assert fault_colour not in colours[0]
    assert fault_colour in colours[1]


def test_a_prompt_of_any_length_takes_two_lines_at_most(module):
    for text in ("word " * 500, "w" * 5000):
        lines = module.split_lines(text, 300)
        assert len(lines) <= module.PROMPT_LINES
        assert lines[-1].endswith("…")
    assert module.split_lines("a short prompt", 300) == ["a short prompt"]


def test_a_time_is_written_in_minutes(module):
    assert [module.spell_time(seconds) for seconds in (0, 3.75, 59.96, 67)] == ["0:00", "0:03.8", "1:00", "1:07"]
