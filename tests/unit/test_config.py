"""The numbers of a rollout check themselves; durations snap to whole blocks, half up."""

import dataclasses
import json
import math

import pytest

from longlive.config import Positions, RolloutConfig
from longlive.errors import ConfigError
from longlive.units import FPS, MAX_SECONDS, convert_blocks_to_seconds, convert_seconds_to_blocks, count_pixel_frames


def test_the_defaults_are_the_released_configuration():
    config = RolloutConfig()
    assert (config.window, config.sink, config.block, config.recent) == (12, 3, 3, 9)
    assert (config.steps, config.shift, config.context_noise) == ((1000, 750, 500, 250), 5.0, 0.0)
    assert config.positions is Positions.ABSOLUTE


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"block": 0}, r"block is 0; a block holds at least 1 frame"),
        ({"block": -3}, r"block is -3; a block holds at least 1 frame"),
        ({"sink": -1}, r"sink is -1; use 0 for no sink"),
        ({"window": 5}, r"window 5 does not hold sink 3 and block 3; use a window of at least 6"),
        ({"window": 7, "sink": 5}, r"window 7 does not hold sink 5 and block 3; use a window of at least 8"),
        ({"window": 12, "sink": 0, "block": 13}, r"does not hold sink 0 and block 13; use a window of at least 13"),
        ({"window": 1025}, r"absolute positions end at 1024 frames; use a smaller window or unbounded positions"),
        ({"steps": ()}, r"steps is empty; give at least one"),
        ({"steps": (1000, 750, 750)}, r"they must fall from at most 1000 to at least 1"),
        ({"steps": (250, 500)}, r"they must fall"),
        ({"steps": (1001, 500)}, r"steps are \[1001, 500\]; they must fall from at most 1000"),
        ({"steps": (1000, 0)}, r"they must fall from at most 1000 to at least 1"),
        ({"shift": 0.0}, r"shift is 0.0; use a positive number"),
        ({"shift": -5.0}, r"shift is -5.0; use a positive number"),
        ({"shift": math.inf}, r"shift is inf; it must be a finite number"),
        ({"shift": math.nan}, r"shift is nan; it must be a finite number"),
        ({"shift": True}, r"shift is True; it must be a number"),
        ({"window": 12.0}, r"window is 12.0; it must be a whole number"),
        ({"window": True, "sink": 0, "block": 1}, r"window is True; it must be a whole number"),
        ({"window": 100_000_000, "positions": Positions.UNBOUNDED}, r"a block may attend 16384 frames at most"),
        ({"steps": 5}, r"steps is 5; it must be a list"),
        ({"steps": (1000, 2.5)}, r"steps\[1\] is 2.5; it must be a whole number"),
        ({"steps": (1,) * 10_000}, r"steps are \[1, 1, 1, 1, 1, 1, \.\.\.\]; they must fall"),
        ({"positions": "relative"}, r"positions is 'relative'; use absolute or unbounded"),
        ({"context_noise": -1.0}, r"context noise is -1.0; it is a timestep from 0 to below 1000"),
        ({"context_noise": 1000.0}, r"context noise is 1000.0; it is a timestep"),
        ({"context_noise": math.nan}, r"context_noise is nan; it must be a finite number"),
    ],
)
def test_a_senseless_setting_is_refused_by_the_rule_it_breaks(fields, rule):
    with pytest.raises(ConfigError, match=rule):
        RolloutConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"window": 1, "sink": 0, "block": 1},
        {"window": 6, "sink": 3},
        {"window": 5, "sink": 3, "block": 1},
        {"window": 20, "sink": 7},
        {"window": 1024},
        {"window": 16384, "positions": Positions.UNBOUNDED},
        {"steps": (1,)},
        {"steps": (1000, 999, 2, 1)},
        {"shift": 1e-3},
        {"context_noise": 999.5},
    ],
    ids=str,
)
def test_settings_at_the_edge_of_a_rule_are_accepted(fields):
    config = RolloutConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_a_configuration_never_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RolloutConfig().window = 9


def test_a_configuration_survives_json():
    config = RolloutConfig(window=9, sink=0, steps=[900, 3], shift=8.0, context_noise=5.0, positions="unbounded")
    assert RolloutConfig(**json.loads(json.dumps(config.as_dict()))) == config
    assert isinstance(config.steps, tuple)


@pytest.mark.parametrize(
    ("seconds", "block", "blocks"),
    [
        (0.75, 3, 1),
        (1.124, 3, 1),
        (1.125, 3, 2),  # half a block rounds up
        (1.875, 3, 3),  # never to even
        (2.625, 3, 4),
        (8, 3, 11),  # 10.67
        (10, 3, 13),  # 13.33
        (0.01, 3, 1),  # at least one
        (0.125, 1, 1),
        (0.375, 1, 2),
        (5, 1, 20),
        (5, 7, 3),
        (MAX_SECONDS, 3, 115_200),
    ],
)
def test_seconds_snap_to_the_nearest_block_half_up(seconds, block, blocks):
    assert convert_seconds_to_blocks(seconds, block) == blocks


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7])
def test_blocks_turned_to_seconds_turn_back(block):
    seconds = [convert_blocks_to_seconds(blocks, block) for blocks in range(1, 500)]
    assert [convert_seconds_to_blocks(value, block) for value in seconds] == [*range(1, 500)]


@pytest.mark.parametrize("seconds", [0, -1, -0.0, math.nan, math.inf, -math.inf])
def test_a_duration_of_nothing_is_refused(seconds):
    with pytest.raises(ConfigError, match="use more than 0 seconds"):
        convert_seconds_to_blocks(seconds, 3)


def test_an_absurd_duration_is_refused():
    with pytest.raises(ConfigError, match=r"one segment may last 86400 s \(a day\) at most"):
        convert_seconds_to_blocks(MAX_SECONDS + 0.5, 3)


def test_n_frames_are_4n_minus_3_pixel_frames():
    assert [count_pixel_frames(n) for n in (0, 1, 2, 3, 30, 1024)] == [0, 1, 5, 9, 117, 4093]


def test_every_frame_after_the_first_lasts_a_quarter_of_a_second():
    assert convert_blocks_to_seconds(1, 3) == 0.75
    assert (count_pixel_frames(100) - count_pixel_frames(97)) / FPS == convert_blocks_to_seconds(1, 3)
