"""Files of 8-bit weights: the tree they make, what computes with it, and what is refused. comfy-kitchen is a stand-in.

The real one is tested in tests/host.
"""

import json
import sys

import pytest
import torch
from kitchen_stand_in import NO_GPU, READY, install_kitchen
from torch import nn

from longlive.errors import ConfigError, TuningError, WeightsError
from longlive.model.causal import CausalWan
from longlive.model.eight_bit import EightBit, EightBitLinear
from longlive.model.wan import Geometry, WanModel
from longlive.tuning.load import load_network
from longlive.weights.describe import describe_file
from longlive.weights.load import load_model, merge_weights
from longlive.weights.quantise import make_hadamard
from longlive.weights.weights_file import read_weights_file

GEOMETRY = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=1, freq_dim=8, text_dim=10, text_len=512)
LINEAR = "blocks.0.cross_attn.o"
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    shapes = WanModel(GEOMETRY, device="meta").state_dict()
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(like.shape, generator=generator) / 16 for name, like in shapes.items()}


@pytest.fixture
def make_state(whole, save):
    """Make the tensors that a file has in a form."""

    def make(form: EightBit) -> dict[str, torch.Tensor]:
        state, _ = merge_weights(read_weights_file(save("whole.safetensors", whole)), eight_bit=form)
        return state

    return make


@pytest.mark.parametrize("form", EightBit)
def test_a_file_makes_a_tree_that_computes_with_its_8_bit_weights(whole, make_state, save, monkeypatch, form):
    install_kitchen(monkeypatch)
    model, report = load_model(save("eight.safetensors", make_state(form)), dtype=torch.float32)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(1))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, EightBitLinear)}
    assert len(layers) == 10
    for name, layer in layers.items():
        if layer.weight.shape[1] == 256:
            expected = nn.functional.linear(x, whole[f"{name}.weight"], whole[f"{name}.bias"])
            assert (layer(x) - expected).norm() / expected.norm() < (0.05 if form is EightBit.FP8_SCALED else 0.01)
    assert report.forms == (form,)
    assert report.summary.endswith(f"in float32, the linears of its layers in {form}")
    assert report.num_parameters == sum(weight.numel() for weight in whole.values())


def test_a_rotated_linear_gets_its_inputs_rotated(make_state, save, monkeypatch):
    install_kitchen(monkeypatch)
    calls = []
    monkeypatch.setattr(torch.ops.comfy_kitchen, "int8_linear", lambda *given: calls.append(given[-2:]))
    for form in (EightBit.INT8, EightBit.INT8_ROTATED):
        model, _ = load_model(save("eight.safetensors", make_state(form)))
        model.get_submodule(LINEAR)(torch.zeros(1, 256))
    assert calls == [(False, len(make_hadamard())), (True, len(make_hadamard()))]


def test_one_scale_for_a_whole_int8_weight_is_read_too(make_state, save, monkeypatch):
    install_kitchen(monkeypatch)
    state = make_state(EightBit.INT8)
    state[f"{LINEAR}.weight_scale"] = torch.tensor(0.5)
    model, _ = load_model(save("eight.safetensors", state), dtype=torch.float32)
    expected = nn.functional.linear(
        torch.ones(1, 256), 0.5 * state[f"{LINEAR}.weight"].float(), state[f"{LINEAR}.bias"]
    )
    torch.testing.assert_close(model.get_submodule(LINEAR)(torch.ones(1, 256)), expected)


def test_what_computes_is_in_the_name_of_the_kernel_and_what_is_slow_is_said(make_state, save, monkeypatch):
    install_kitchen(monkeypatch, cuda=NO_GPU)
    model, report = load_model(save("eight.safetensors", make_state(EightBit.INT8)))
    assert CausalWan.of_tree(model).kernel == "cpu sdpa int8 eager"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    [warning] = report.warnings
    assert "the device is cpu" in warning
    assert "about 470 GB more per block at 832 x 480 and is slower than bf16; use a PyTorch for CUDA 13" in warning


@pytest.mark.parametrize(
    ("cuda", "capability", "reason"),
    [
        (READY, (8, 6), None),
        (READY, (7, 5), None),
        (READY, (7, 0), "the GPU is older than RTX 20"),
        (READY | {"disabled": True}, (8, 6), "its CUDA backend is switched off"),
        (NO_GPU | {"unavailable_reason": "libcublasLt.so.13 not found"}, (8, 6), "libcublasLt.so.13 not found"),
    ],
)
def test_int8_without_kernels_is_slow_and_says_why(monkeypatch, cuda, capability, reason):
    install_kitchen(monkeypatch, cuda=cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    for form in (EightBit.INT8, EightBit.INT8_ROTATED):
        sentence = form.explain_slow(CUDA)
        assert f"no INT8 kernels here ({reason}): " in sentence if reason else not sentence
    assert EightBit.INT8.name_kernels(CUDA) == ("int8 cuda" if cuda == READY else "int8 eager")


@pytest.mark.parametrize(("capability", "is_fast"), [((8, 9), True), ((9, 0), True), ((8, 6), False)])
def test_fp8_needs_a_gpu_that_multiplies_it(monkeypatch, capability, is_fast):
    install_kitchen(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert bool(EightBit.FP8_SCALED.explain_slow(CUDA)) is not is_fast


def test_without_comfy_kitchen_a_file_is_refused_with_the_cure(make_state, save, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    with pytest.raises(ConfigError, match=r"need comfy-kitchen, .*; pip install 'comfy-kitchen>=0\.2\.40', or"):
        load_model(save("eight.safetensors", make_state(EightBit.INT8)))


def test_8_bit_weights_are_neither_changed_nor_tuned(make_state, save, lora, monkeypatch):
    install_kitchen(monkeypatch)
    path = save("eight.safetensors", make_state(EightBit.INT8))
    with pytest.raises(
        WeightsError, match=r"cannot be changed; give the whole weights, and merge lora\.pt by `longlive"
    ):
        load_model(path, lora=lora)
    with pytest.raises(WeightsError, match=r"8 bits, which cannot be changed; give the whole weights$"):
        merge_weights(read_weights_file(path), eight_bit=EightBit.INT8)
    with pytest.raises(TuningError, match=r"eight\.safetensors has linears in 8 bits, .*; give a file of bf16"):
        load_network(path, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("weight", torch.zeros(256, 256), r"1 of an unknown dtype \(blocks\.0\.cross_attn\.o\.weight float32\)"),
        ("weight", torch.zeros(256, 128, dtype=torch.int8), "1 of another shape"),
        ("weight_scale", torch.ones(3, 1), "1 of another shape"),
        ("weight_scale", torch.ones(256, 1, 1), "1 of another shape"),
        ("weight_scale", torch.ones(256, 1, dtype=torch.int8), "1 of an unknown dtype"),
        ("weight_scale", torch.full((256, 1), torch.nan), "holds NaN or infinity"),
        ("weight_scale", None, "which is no linear with a scale; make it again"),
        ("weight", None, r"1 missing \(blocks\.0\.cross_attn\.o\.weight\)"),
        ("input_scale", torch.ones(()), "1 left over"),
        ("comfy_quant", b'{"format": "nvfp4"}', r"in the form {.format.: .nvfp4.}, expected one that .* load it with"),
        ("comfy_quant", b"\xff{", "expected one that `longlive quantize` writes"),
        ("comfy_quant", b"[" * 999, "expected one that `longlive quantize` writes"),
        ("comfy_quant", b" " * 1001 + b'{"format": "int8_tensorwise"}', "expected one that"),
        ("comfy_quant", torch.ones(3), "expected one that"),
        ("comfy_quant", None, r"1 left over .*; 1 of an unknown dtype"),
    ],
)
def test_a_false_file_is_refused(make_state, save, monkeypatch, name, tensor, message):
    install_kitchen(monkeypatch)
    state = make_state(EightBit.INT8)
    state.pop(f"{LINEAR}.{name}", None)
    if isinstance(tensor, bytes):
        tensor = torch.tensor(list(tensor), dtype=torch.uint8)
    if tensor is not None:
        state[f"{LINEAR}.{name}"] = tensor
    with pytest.raises(WeightsError, match=message):
        load_model(save("eight.safetensors", state))


@pytest.mark.parametrize("module", ["blocks.0.norm3", "blocks.7.ffn.0", "", "blocks.0"])
def test_a_description_of_what_is_no_linear_is_refused(make_state, save, module):
    described = json.dumps({"format": "int8_tensorwise"}).encode()
    state = make_state(EightBit.INT8) | {
        f"{module}.comfy_quant": torch.tensor(list(described), dtype=torch.uint8),
        f"{module}.weight_scale": torch.ones(()),
    }
    with pytest.raises(WeightsError, match=r"which is no linear with a scale|no layer"):
        load_model(save("eight.safetensors", state))


def test_a_file_is_described(make_state, save):
    text = describe_file(save("eight.safetensors", make_state(EightBit.INT8_ROTATED)))
    assert "  8 bits    10 linears in int8 rotated" in text
    assert "  geometry  width 256, feed-forward 512, 2 heads, 1 layers" in text
    state = make_state(EightBit.INT8) | {f"{LINEAR}.comfy_quant": torch.zeros(1, dtype=torch.uint8)}
    assert "expected one that `longlive quantize` writes" in describe_file(save("odd.safetensors", state))
