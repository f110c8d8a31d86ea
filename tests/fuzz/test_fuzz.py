"""A share of `make fuzz`, and whether it would notice what it looks for."""

import json
import os
import time

import mutators
import pytest
from harness import Outcomes, Target, Unclear, attack_all, attack_once
from targets import TARGETS

from longlive.errors import ConfigError, LongLiveError

SHARE = 50  # one input of so many


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_ends_in_the_right_result_or_one_clear_error(target):
    outcomes = attack_all(target, range(0, target.inputs, SHARE))
    assert not outcomes.unclear, "\n".join(outcomes.unclear)
    assert outcomes.right + outcomes.refused == len(range(0, target.inputs, SHARE))


class Raw(LongLiveError):
    """An error that shows what it was given."""

    __str__ = Exception.__str__


def work(draw, folder):
    while True:
        pass


def make_attack(error: BaseException):
    def attack(draw, folder):
        raise error

    return attack


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (make_attack(KeyError("x")), "KeyError: 'x'"),
        (make_attack(Unclear("another block")), "another block"),
        (make_attack(Raw("two\nlines")), "is not one line of printable text"),
        (make_attack(Raw("\x1b[2J")), "is not one line of printable text"),
        (make_attack(Raw("x" * 5000)), "says 5,000 characters"),
        (make_attack(Raw("")), "says nothing"),
        (lambda draw, folder: bytearray(b"x") * (1 << 30), "it took"),
        (work, "it works without end"),
        (lambda draw, folder: time.sleep(60), "it waits without end"),
        (lambda draw, folder: os.mkfifo(folder / "x") or (folder / "x").read_bytes(), "it waits without end"),
    ],
)
def test_an_unclear_outcome_is_noticed(monkeypatch, tmp_path, attack, told):
    if "without end" in told:
        limit = "STILL_SECONDS" if "waits" in told else "WORK_SECONDS"  # the other limits must not come first
        monkeypatch.setattr(f"harness.{limit}", 2)
    monkeypatch.setattr("harness.KEPT", tmp_path)
    outcomes = Outcomes()
    attack_once(Target("itself", 1, attack), 0, 0, outcomes)
    assert len(outcomes.unclear) == 1
    assert told in outcomes.unclear[0]


def test_what_is_right_and_what_is_refused_is_counted(tmp_path):
    outcomes = Outcomes()
    attack_once(Target("itself", 1, lambda draw, folder: None), 0, 0, outcomes)
    attack_once(Target("itself", 1, make_attack(ConfigError("no such size; use 16"))), 0, 0, outcomes)
    assert (outcomes.right, outcomes.refused, outcomes.unclear) == (1, 1, [])


def test_an_input_follows_from_its_number_alone(tmp_path):
    drawn = []
    target = Target("itself", 4, lambda draw, folder: drawn.append(draw.random()))
    attack_all(target, [0, 1, 2])
    attack_all(target, [2])
    assert drawn[2] == drawn[3]
    assert len(set(drawn)) == 3


READ_WHOLE = ("session files", "forged sessions", "checkpoints", "LoRAs", "VAE files", "tuning checkpoints", "TOML",
              "prompt pairs", "requests and answers", "timeline scripts")  # fmt: skip


@pytest.mark.parametrize("target", [target for target in TARGETS if target.name in READ_WHOLE], ids=lambda t: t.name)
def test_what_is_not_damaged_is_read(monkeypatch, target):
    """Otherwise a reader that refuses everything would pass."""
    for change in ("bytes", "json", "text", "tensors", "header"):
        monkeypatch.setattr(mutators, f"mutate_{change}", lambda draw, whole, *_: whole)
    monkeypatch.setattr(mutators, "write_json", lambda draw, value: json.dumps(value))
    outcomes = attack_all(target, range(12))
    assert outcomes.unclear == []
    assert outcomes.right > 0
