"""What exact, fast and fastest use: nothing that is not here, nothing that is slower here."""

import pytest
import torch

from longlive.errors import ConfigError
from longlive.model import speed
from longlive.model.eight_bit import EightBit
from longlive.model.speed import Means, Speed, choose_means

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def with_kernels(monkeypatch):
    monkeypatch.setattr(speed, "choose_quantised_attention", lambda *_: None)
    monkeypatch.setattr(speed, "find_int8_obstacle", lambda _: "")


@pytest.mark.usefixtures("with_kernels")
def test_where_all_kernels_are_a_speed_leaves_nothing_out():
    assert choose_means(Speed.EXACT, GPU, torch.bfloat16) == Means()
    assert choose_means(Speed.FAST, GPU, torch.bfloat16) == Means(Speed.FAST, attention=True)
    expected = Means(Speed.FASTEST, attention=True, form=EightBit.INT8)
    assert choose_means(Speed.FASTEST, GPU, torch.bfloat16) == expected
    assert [choose_means(each, GPU, torch.bfloat16).joined for each in Speed] == [False, True, True]


def test_what_is_missing_is_left_out_with_a_sentence(monkeypatch):
    monkeypatch.setattr(speed, "find_int8_obstacle", lambda _: "the moon is full")
    assert choose_means(Speed.EXACT, CPU, torch.float32).left_out == ()
    [no_attention] = choose_means(Speed.FAST, CPU, torch.float32).left_out
    assert no_attention.startswith("8-bit attention cannot run here (cpu, torch.float32); install")
    fastest = choose_means(Speed.FASTEST, CPU, torch.float32)
    no_linears = fastest.left_out[-1]
    assert "INT8 linears, because comfy-kitchen has no kernels for them here (the moon is full)" in no_linears
    assert fastest == Means(Speed.FASTEST, left_out=(no_attention, no_linears))


def test_without_comfy_kitchen_the_weights_stay_whole(monkeypatch):
    def fail(_):
        raise ConfigError("comfy-kitchen does not load")

    monkeypatch.setattr(speed, "find_int8_obstacle", fail)
    means = choose_means(Speed.FASTEST, CPU, torch.float32)
    assert (means.form, means.left_out[-1]) == (None, "INT8 linears: comfy-kitchen does not load")
