"""Finite or not: told right for every dtype, value, place and layout."""

import math

import pytest
import torch

from longlive.finite import CHUNK, is_finite

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_bad_value_is_found_wherever_it_is(dtype, value, place):
    x = torch.randn(2 * CHUNK + 7).to(dtype)
    assert is_finite(x)
    x[place] = value
    assert not is_finite(x)
    assert not is_finite(torch.nn.Parameter(x).view(-1, 1).expand(-1, 2).t())


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_numbers_are_finite_whatever_their_sum(dtype):
    assert is_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))
    assert is_finite(torch.full((1000,), torch.finfo(dtype).tiny, dtype=dtype))


@pytest.mark.parametrize("dtype", FP8)
def test_every_byte_of_a_float8_is_judged_as_its_value(dtype):
    for byte in torch.arange(256, dtype=torch.uint8).view(-1, 1):
        x = byte.view(dtype)
        assert is_finite(x) == math.isfinite(float(x.float())), byte


@pytest.mark.parametrize("dtype", FP8)
def test_a_bad_float8_is_found_among_many(dtype):
    x = torch.ones(2 * CHUNK, dtype=torch.uint8)
    assert is_finite(x.view(dtype))
    x[-1] = 0xFF if dtype in FP8[:2] else 0x80
    assert not is_finite(x.view(dtype))


def test_whole_numbers_and_nothing_are_finite():
    assert is_finite(torch.tensor([2**63 - 1]))
    assert is_finite(torch.tensor([True]))
    assert all(is_finite(torch.empty(0, 3, dtype=dtype)) for dtype in FLOATS + FP8)
