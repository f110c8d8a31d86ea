"""Dtypes: float64 only on devices that have it (the meta device stands for a GPU without), and finite or not."""

import math
from typing import cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longlive.config import Positions, RolloutConfig
from longlive.model import dtypes
from longlive.model.attention import attend_with_torch
from longlive.model.causal import CausalWan, make_sinusoid
from longlive.model.dtypes import CHUNK, choose_float, is_finite
from longlive.model.rope import make_table
from longlive.model.wan import Geometry, WanModel, WanTree
from longlive.rollout.rollout import Rollout

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
GEOMETRY = Geometry(dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=8, text_dim=10, text_len=6)


class NoFloat64(TorchDispatchMode):
    """Refuse a float64 tensor on the meta device, as a GPU without float64 does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype is torch.float64:
                raise TypeError(f"{function} makes a float64 tensor on a device that has none")
        return result


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float64),
        ("cuda:1", torch.float64),
        ("mps", torch.float32),
        ("xpu:0", torch.float32),
        ("privateuseone", torch.float32),  # DirectML
    ],
)
def test_the_widest_float_is_one_that_the_device_has(device, dtype):
    assert choose_float(device) is dtype


@pytest.mark.parametrize("positions", Positions)
def test_a_device_without_float64_makes_a_video(positions, monkeypatch):
    monkeypatch.setattr(dtypes, "DEVICES_WITH_FLOAT64", ("cpu",))
    config = RolloutConfig(window=6, sink=1, positions=positions)
    with NoFloat64():
        model = make_on_meta()
        rollout = Rollout(model, config, (1, 16, 4, 4))
        text = model.read_prompt(torch.empty(1, 6, 10, device="meta"))
        noise = lambda block, step: torch.empty(1, 3, 16, 4, 4, device="meta")  # noqa: E731
        for block in range(4):  # the window rolls, and the sink moves
            latents = rollout.denoise(3 * block, text, noise, block)
            rollout.clean_pass(3 * block, latents, text)
        rollout.recache(12, torch.empty(1, 12, 16, 4, 4, device="meta"), text)
    assert latents.shape == (1, 3, 16, 4, 4)


@pytest.mark.parametrize(("devices", "exact"), [(("cpu",), "cpu"), (("cpu", "meta"), "meta")])
def test_timesteps_are_embedded_where_float64_is_and_copied_from_nowhere_else(devices, exact, monkeypatch):
    monkeypatch.setattr(dtypes, "DEVICES_WITH_FLOAT64", devices)
    embedded_on = []
    monkeypatch.setattr(
        "longlive.model.causal.make_sinusoid",
        lambda t, width: embedded_on.append(t.device.type) or make_sinusoid(t, width),
    )
    model = make_on_meta()
    rollout = Rollout(model, RolloutConfig(), (1, 16, 4, 4))
    text = model.read_prompt(torch.empty(1, 6, 10, device="meta"))
    clean = torch.empty(1, 3, 16, 4, 4, device="meta")
    rollout.clean_pass(0, clean, text)
    assert embedded_on == [exact]


def test_a_device_with_float64_makes_its_rotations_without_a_copy():
    with torch.device("cpu"), Copies() as copies:
        make_table(5, 3, (2, 3), 16, "meta")
    assert copies.count == 0


class Copies(TorchDispatchMode):
    """Count what is copied to the meta device, which stands for a GPU that has float64."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        sources = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
        self.count += any(x.is_meta for x in tree_leaves(result)) and any(not x.is_meta for x in sources)
        return result


def make_on_meta() -> CausalWan:
    tree = cast(WanTree, WanModel(GEOMETRY, device=torch.device("meta")))
    return CausalWan(
        tree=tree,
        geometry=GEOMETRY,
        attend=attend_with_torch,
        kernel="meta sdpa",
        device=torch.device("meta"),
        dtype=torch.float32,
        entry_dtype=torch.float32,
    )


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
