"""8-bit linears: the numbers, the tensors that a file has for them, and which linears they are."""

import json

import pytest
import torch
from tiny_weights import CAUSAL

from longlive.errors import WeightsError
from longlive.model.eight_bit import EightBit
from longlive.model.wan import Geometry, WanModel
from longlive.weights.load import merge_weights
from longlive.weights.quantise import is_linear_of_layer, make_hadamard, quantise_linear
from longlive.weights.weights_file import read_weights_file

NAME = "blocks.0.ffn.0.weight"


def draw_weight(outputs: int = 6, inputs: int = 512) -> torch.Tensor:
    noise = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return noise * torch.logspace(-3, 1, outputs)[:, None]


def restore(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the weight that the tensors of a linear stand for."""
    weight = tensors[NAME].double() * tensors["blocks.0.ffn.0.weight_scale"].double()
    described = json.loads(bytes(tensors["blocks.0.ffn.0.comfy_quant"].tolist()))
    if not described.get("convrot"):
        return weight
    groups = weight.view(len(weight), -1, described["convrot_groupsize"])
    return (groups @ make_hadamard().double()).view_as(weight)


@pytest.mark.parametrize(
    ("form", "dtype", "scale", "described"),
    [
        ("int8", torch.int8, (6, 1), {"format": "int8_tensorwise"}),
        ("int8 rotated", torch.int8, (6, 1), {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}),
        ("fp8 scaled", torch.float8_e4m3fn, (), {"format": "float8_e4m3fn"}),
    ],
)
def test_a_linear_becomes_three_tensors_of_comfyui_s_form(form, dtype, scale, described):
    tensors = quantise_linear(NAME, draw_weight(), EightBit(form))
    names = ("weight", "weight_scale", "comfy_quant")
    weight, found_scale, found = (tensors[f"blocks.0.ffn.0.{name}"] for name in names)
    assert len(tensors) == 3
    assert (weight.dtype, tuple(weight.shape)) == (dtype, (6, 512))
    assert (found_scale.dtype, tuple(found_scale.shape)) == (torch.float32, scale)
    assert found.dtype == torch.uint8
    assert json.loads(bytes(found.tolist())) == described


def test_int8_is_the_nearest_of_255_steps_for_each_output():
    weight = draw_weight()
    steps = weight.abs().amax(1, keepdim=True) / 127
    tensors = quantise_linear(NAME, weight, EightBit.INT8)
    assert torch.equal(tensors[NAME].abs().amax(1), torch.full((6,), 127, dtype=torch.int8))
    assert ((restore(tensors) - weight).abs() / steps).max() < 0.5001


def test_a_rotation_is_orthogonal_and_keeps_what_its_linear_computes():
    hadamard = make_hadamard()
    torch.testing.assert_close(hadamard @ hadamard.T, torch.eye(256))
    weight = draw_weight()
    error = (restore(quantise_linear(NAME, weight, EightBit.INT8_ROTATED)) - weight).norm(dim=1) / weight.norm(dim=1)
    assert error.max() < 0.01


def test_a_rotation_spreads_one_large_number():
    weight = draw_weight(outputs=1)
    weight[0, 0] = 100 * weight.abs().max()
    plain, rotated = (
        (restore(quantise_linear(NAME, weight, form)) - weight)[0, 1:].norm() / weight[0, 1:].norm()
        for form in (EightBit.INT8, EightBit.INT8_ROTATED)
    )
    assert rotated < plain / 5


def test_fp8_uses_the_whole_range_of_float8():
    weight = draw_weight()
    tensors = quantise_linear(NAME, weight, EightBit.FP8_SCALED)
    assert tensors[NAME].float().abs().max() == 448
    large = weight.abs() > weight.abs().max() / 100
    assert ((restore(tensors) - weight).abs() / weight.abs())[large].max() < 2**-4 + 1e-6


@pytest.mark.parametrize("form", EightBit)
def test_a_linear_of_zeros_stays_one(form):
    assert not restore(quantise_linear(NAME, torch.zeros(2, 256), form)).any()


def test_inputs_that_no_group_divides_are_not_rotated():
    with pytest.raises(WeightsError, match=r"ffn\.0\.weight has 100 inputs, but .* multiple of 256; choose int8"):
        quantise_linear(NAME, torch.ones(2, 100), EightBit.INT8_ROTATED)


def test_ten_linears_of_each_layer_have_8_bits_and_nothing_else():
    geometry = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=30, freq_dim=8, text_dim=10)
    names = [*filter(is_linear_of_layer, WanModel(geometry, device="meta").state_dict())]
    assert len(names) == 300
    assert {name.split(".", 2)[2] for name in names} == {
        *(f"{attention}.{part}.weight" for attention in ("self_attn", "cross_attn") for part in "qkvo"),
        "ffn.0.weight",
        "ffn.2.weight",
    }


def test_a_lora_is_added_before_the_rounding_and_other_tensors_stay(lora):
    file = read_weights_file(CAUSAL)
    exact, _ = merge_weights(file, lora=lora, dtype=torch.float32)
    state, report = merge_weights(file, lora=lora, dtype=torch.bfloat16, eight_bit=EightBit.INT8)
    for name, weight in exact.items():
        if is_linear_of_layer(name):
            for key, tensor in quantise_linear(name, weight, EightBit.INT8).items():
                assert torch.equal(state.pop(key), tensor)
        else:
            assert torch.equal(state.pop(name), weight.bfloat16())
    assert state == {}
    assert report.summary.endswith("in bfloat16, the linears of its layers in int8 with lora.pt on 20 modules")
    assert (report.num_tensors, report.num_parameters) == (69, 40_096)
