"""Checks of 8-bit weights: the numbers of our rounding, and what ComfyUI's own loader reads; run inside a host."""

import importlib.metadata
import tempfile
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy_kitchen
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfyui_longlive.longlive.cli.main import main
from comfyui_longlive.longlive.errors import WeightsError
from comfyui_longlive.longlive.model import eight_bit
from comfyui_longlive.longlive.model.causal import CausalWan
from comfyui_longlive.longlive.model.eight_bit import EightBit, EightBitLinear
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.longlive.weights.load import load_model
from comfyui_longlive.longlive.weights.lora import Lora
from comfyui_longlive.longlive.weights.quantise import DESCRIPTIONS, is_linear_of_layer, quantise_linear
from comfyui_longlive.nodes.host.identity import describe_kernels, hash_model
from comfyui_longlive.nodes.host.model import list_ignored
from comfyui_longlive.nodes.models import ModelLoader
from compute import begin_session, extend_session, set_dtype
from loading import add_model_files, compile_model
from model_files import DIT, LORA, ORIGINAL_DIT, ORIGINAL_LORA, write_models

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
                expected = host.model.diffusion_model.get_submodule(name)(x)
                assert torch.equal(layer(x), expected), (form, name)
            compiled = torch.compile(layer, backend="eager", fullgraph=True)
            assert torch.equal(compiled(x), expected)


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


def check_our_loader_rounds_as_the_command_does() -> None:
    """The MODEL is the one of a file that `longlive quantize` writes, through ComfyUI's loader and through ours."""
    with add_model_files():
        find = folder_paths.get_full_path_or_raise
        weights, lora = find("diffusion_models", ORIGINAL_DIT.name), find("loras", ORIGINAL_LORA.name)
        plain = ModelLoader.execute(ORIGINAL_DIT.name, ORIGINAL_LORA.name, 0.5, "fp32").result[0]
        output = Path(weights).with_name("eight.safetensors")
        models = [plain]
        for form in list_forms():
            model, report = ModelLoader.execute(ORIGINAL_DIT.name, ORIGINAL_LORA.name, 0.5, str(form)).result
            assert f"in {form} with" in report
            assert "the device is cpu" in report or "this device (cpu) does not multiply float8" in report
            arguments = ["--format", form.replace(" ", "-"), "--lora", lora, "--strength", "0.5"]
            assert main(["quantize", weights, str(output), *arguments]) == 0
            written = (
                comfy.sd.load_diffusion_model(str(output)),
                ModelLoader.execute(output.name, "none", 1, "default")[0],
            )
            for other in (*written, compile_model(model)):
                assert hash_model(other) == hash_model(model)
                expected = extend_session(model, begin_session(model)).blocks[0]
                assert torch.equal(extend_session(other, begin_session(other)).blocks[0], expected)
            models.append(model)
        assert len({hash_model(model) for model in models}) == len(models)
        assert len({describe_kernels(model) for model in (plain, models[-1], set_dtype(models[-1], "fp32"))}) == 3


def load_again(model: ModelPatcher) -> ModelPatcher:
    """Have a node load the model again, which asks for it without dynamic VRAM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "is_dynamic", lambda: True)
        return compile_model(model)


def check_a_lora_node_works_on_our_8_bit_model() -> None:
    with add_model_files():
        named = Lora.read(folder_paths.get_full_path_or_raise("loras", ORIGINAL_LORA.name)).as_comfy_state()
        for form in list_forms():
            bare = ModelLoader.execute(ORIGINAL_DIT.name, "none", 1.0, str(form)).result[0]
            merged = ModelLoader.execute(ORIGINAL_DIT.name, ORIGINAL_LORA.name, 1.0, str(form)).result[0]
            patched, _ = comfy.sd.load_lora_for_models(bare, None, named, 1.0, 0.0)
            assert hash_model(patched) != hash_model(bare)
            expected, found, without = (
                extend_session(model, begin_session(model)).blocks[0] for model in (merged, patched, bare)
            )
            error, effect = ((each - expected).norm() / expected.norm() for each in (found, without))
            assert error < 2 * LARGEST_ERRORS[form]
            assert error < 0.8 * effect, (form, error, effect)  # ComfyUI rounds at random after it added a LoRA


def check_8_bit_weights_compute_in_bf16_where_the_device_can() -> None:
    """Also after that, each linear computes in 8 bits; ComfyUI's ModelComputeDtype would widen it."""
    with add_model_files(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: True)
        model = ModelLoader.execute(ORIGINAL_DIT.name, "none", 1.0, str(list_forms()[0])).result[0]
        patch.undo()
        session = extend_session(model, begin_session(model))
        assert session.dtype is torch.bfloat16
        assert list_ignored(model) == []
        linears = [layer for layer in model.model.diffusion_model.modules() if getattr(layer, "quant_format", None)]
        assert len(linears) == 20
        assert not any(layer.comfy_force_cast_weights for layer in linears)


def check_forms_that_comfyui_lacks_are_refused() -> None:
    with add_model_files():
        for form in {*EightBit} - {*list_forms()}:
            with pytest.raises(
                WeightsError, match=f"does not know {form} weights; update ComfyUI, or choose fp8 scaled"
            ):
                ModelLoader.execute(ORIGINAL_DIT.name, "none", 1.0, str(form))
