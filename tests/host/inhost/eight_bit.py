"""Checks of 8-bit weights: the numbers of our rounding, and what ComfyUI's own loader reads; run inside a host."""

import importlib.metadata
import tempfile
from pathlib import Path

import comfy.sd
import comfy_kitchen
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfyui_longlive.longlive.cli.main import main
from comfyui_longlive.longlive.model import eight_bit
from comfyui_longlive.longlive.model.causal import CausalWan
from comfyui_longlive.longlive.model.eight_bit import EightBit, EightBitLinear
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.longlive.weights.load import load_model
from comfyui_longlive.longlive.weights.quantise import DESCRIPTIONS, is_linear_of_layer, quantise_linear
from comfyui_longlive.nodes.host.identity import hash_model
from compute import begin_session, extend_session
from model_files import DIT, LORA, write_models

LARGEST_ERRORS = {EightBit.INT8: 0.02, EightBit.INT8_ROTATED: 0.02, EightBit.FP8_SCALED: 0.05}  # relative, of a block


def list_forms() -> list[EightBit]:
    """List the forms that this ComfyUI reads."""
    return [form for form in EightBit if DESCRIPTIONS[form]["format"] in QUANT_ALGOS]


def check_forms() -> list[str]:
    return list_forms()


def check_our_rounding_is_comfy_kitchen_s() -> None:
    name, weight = "blocks.0.ffn.2.weight", torch.randn(96, 8960, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().max() / 448
    expected = {EightBit.FP8_SCALED: (comfy_kitchen.quantize_per_tensor_fp8(weight, scale), scale)}
    if EightBit.INT8 in list_forms():
        from comfy_kitchen.tensor import TensorWiseINT8Layout

        for form, rotates in ((EightBit.INT8, False), (EightBit.INT8_ROTATED, True)):
            rounded, params = TensorWiseINT8Layout.quantize(weight, per_channel=True, convrot=rotates)
            expected[form] = (rounded, params.scale)
    for form, (rounded, scale) in expected.items():
        found = quantise_linear(name, weight, form)
        assert torch.equal(found[name].view(torch.uint8), rounded.view(torch.uint8)), form
        assert torch.equal(found[f"{name}_scale"], scale), form


def check_stock_loader_reads_our_files() -> dict[str, float]:
    """Each linear of a layer stays in 8 bits, and the LoRA is in it; return the errors of a block."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        weights, lora = str(Path(folder) / DIT), str(Path(folder) / LORA)
        exact = comfy.sd.load_diffusion_model_state_dict(
            {name: weight.clone() for name, weight in load_model(weights, lora=lora)[0].state_dict().items()}
        )
        expected = extend_session(exact, begin_session(exact)).blocks[0]
        digests, errors = {hash_model(exact)}, {}
        for form in list_forms():
            output = str(Path(folder) / "eight.safetensors")
            arguments = ["quantize", weights, output, "--format", form.replace(" ", "-"), "--lora", lora]
            assert main(arguments) == 0
            model = comfy.sd.load_diffusion_model(output)
            for name, weight in model.model.diffusion_model.named_parameters():
                assert isinstance(weight, QuantizedTensor) == is_linear_of_layer(name), name
            found = extend_session(model, begin_session(model)).blocks[0]
            errors[form] = float((found - expected).norm() / expected.norm())
            digests.add(hash_model(model))
        assert len(digests) == 1 + len(errors)
    assert all(0 < error < LARGEST_ERRORS[form] for form, error in errors.items()), errors
    return errors


def check_our_tree_computes_what_comfyui_computes() -> None:
    """The same file, through our loader and through ComfyUI's: each linear is equal.

    A block is only near: the two networks differ by rounding elsewhere, and that changes what the inputs of a linear
    are rounded to.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for form in list_forms():
            output = str(Path(folder) / "eight.safetensors")
            assert main(["quantize", str(Path(folder) / DIT), output, "--format", form.replace(" ", "-")]) == 0
            host, (tree, _) = comfy.sd.load_diffusion_model(output), load_model(output, dtype=torch.float32)
            release = importlib.metadata.version("comfy-kitchen")
            assert CausalWan.of_tree(tree).kernel == f"cpu sdpa {form} comfy-kitchen {release} eager"
            session = begin_session(host)
            expected = extend_session(host, session).blocks[0]
            with Sampler(CausalWan.of_tree(tree)) as sampler:
                found = sampler.sample(session, 1).blocks[0]
            assert (found - expected).norm() < LARGEST_ERRORS[form] * expected.norm()
            layers = {name: layer for name, layer in tree.named_modules() if isinstance(layer, EightBitLinear)}
            assert len(layers) == 20
            for name, layer in layers.items():
                x = torch.randn(2, 5, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
                assert torch.equal(layer(x), host.model.diffusion_model.get_submodule(name)(x)), (form, name)


def check_fp8_is_multiplied_as_such() -> None:
    """As on a GPU that can; PyTorch's CPU can, too, slowly."""
    linear = torch.nn.Linear(256, 64, dtype=torch.bfloat16).requires_grad_(False)
    layer = EightBitLinear(linear, EightBit.FP8_SCALED, ())
    tensors = quantise_linear("x.weight", linear.weight, EightBit.FP8_SCALED)
    layer.weight, layer.weight_scale = tensors["x.weight"], tensors["x.weight_scale"]
    x = 100 * torch.randn(2, 32, 256, dtype=torch.bfloat16)
    rounded = x.float().clamp(-448, 448).to(torch.float8_e4m3fn)
    expected = torch.nn.functional.linear(
        rounded.float(), layer.weight.float() * layer.weight_scale, linear.bias.float()
    )
    with pytest.MonkeyPatch.context() as patch:
        widened = layer(x)
        patch.setattr(eight_bit, "can_multiply_fp8", lambda _: True)
        multiplied = layer(x)
    assert (multiplied.shape, multiplied.dtype) == (widened.shape, torch.bfloat16)
    assert (multiplied.float() - expected).norm() < 0.005 * expected.norm()
    assert (widened.float() - expected).norm() > 0.01 * expected.norm()
