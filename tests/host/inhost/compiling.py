"""Checks of a MODEL that a node compiles; run inside a host."""

import contextlib
import logging
from collections.abc import Iterator

import comfy.ldm.modules.attention
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfyui_longlive.longlive.errors import SamplingError
from comfyui_longlive.longlive.model.compiled import CompiledWan, LayerCompiler
from comfyui_longlive.longlive.model.eight_bit import EightBit
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.longlive.session.session import Session
from comfyui_longlive.nodes.host import model, sampling
from comfyui_longlive.nodes.host.compiling import describe_compiling, is_compiling_asked, list_obstacles
from comfyui_longlive.nodes.host.model import list_ignored
from comfyui_longlive.nodes.host.speed import clone_for, copy_in_8_bits, describe_speed
from comfyui_longlive.nodes.host.warm_cache import warm_slot
from comfyui_longlive.nodes.models import MiniatureLoader
from comfyui_longlive.nodes.session import NewSession

BLOCKS = 6  # two of them when the window has rolled


@contextlib.contextmanager
def use_pytorch_attention() -> Iterator[pytest.MonkeyPatch]:
    """Attend as ComfyUI does on a GPU. On a CPU its default reads files, which no graph can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "optimized_attention", comfy.ldm.modules.attention.attention_pytorch)
        patch.setattr(sampling, "open_block_store", lambda: None)
        yield patch


def load_compiled(patcher: ModelPatcher, backend: str = "aot_eager") -> ModelPatcher:
    """Compile a MODEL as TorchCompileModel does, with a quicker backend."""
    compiled = patcher.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend, options={"guard_filter_fn": list})
    return compiled


def load_miniature() -> ModelPatcher:
    return MiniatureLoader.execute().result[0]


def begin_miniature(patcher: ModelPatcher) -> Session:
    embedding = torch.randn(1, 8, patcher.model.diffusion_model.text_dim, generator=torch.Generator().manual_seed(0))
    return NewSession.execute(patcher, 64, 64, 7, [[embedding, {}]]).result[0].session


def extend(patcher: ModelPatcher, session: Session, blocks: int) -> tuple[Sampler, Session]:
    with sampling.open_sampler(patcher, session, blocks) as sampler:
        return sampler, sampler.sample(session, blocks)


@torch.inference_mode()
def check_the_node_compiles_the_miniature() -> None:
    """Under the mode in which ComfyUI calls nodes."""
    plain = load_miniature()
    compiled, runs, run = load_compiled(plain), [], LayerCompiler.run
    with use_pytorch_attention() as patch:
        patch.setattr(LayerCompiler, "run", lambda *args: runs.append(1) or run(*args))
        expected_by, expected = extend(plain, begin_miniature(plain), BLOCKS)
        assert not runs
        assert describe_compiling(compiled) == "compiled when it samples"
        sampler, whole = extend(compiled, begin_miniature(compiled), BLOCKS)
        assert runs
        assert list_ignored(compiled) == []
        assert describe_speed(compiled).splitlines()[2] == "compiled by aot_eager"
        assert describe_compiling(compiled) == "compiled by aot_eager"
        assert describe_compiling(plain) == ""
        assert sampler.model.kernel == f"{expected_by.model.kernel} compiled-aot_eager-{torch.__version__}"
        assert not {*whole.keys} & {*expected.keys}
        torch.testing.assert_close(whole.latents(), expected.latents(), rtol=0, atol=1e-6)

        _, first = extend(compiled, begin_miniature(compiled), 5)
        assert warm_slot.count_bytes(compiled) > 0 == warm_slot.count_bytes(plain)
        _, split = extend(compiled, first, 1)
        assert torch.equal(split.latents(), whole.latents())
        assert split.keys == whole.keys


def check_an_8_bit_copy_is_compiled_too() -> None:
    plain = load_miniature()
    copies = [clone_for(each, copy_in_8_bits(each, EightBit.INT8)) for each in (plain, load_compiled(plain))]
    assert [*map(is_compiling_asked, copies)] == [False, True]


@torch.inference_mode()
def check_inductor_by_the_node_itself() -> None:
    plain = load_miniature()
    [compiled] = TorchCompileModel.execute(plain, "inductor").result
    with use_pytorch_attention():
        sampler, found = extend(compiled, begin_miniature(compiled), BLOCKS)
        _, expected = extend(plain, begin_miniature(plain), BLOCKS)
    assert isinstance(sampler.model, CompiledWan), describe_compiling(compiled)
    assert describe_compiling(compiled) == "compiled by inductor"
    torch.testing.assert_close(found.latents(), expected.latents(), rtol=0, atol=1e-4)


def check_what_cannot_be_compiled_says_why() -> None:
    messages = Messages()
    with use_pytorch_attention() as patch:
        for change, reason in (
            (override_attention, "a node overrides its attention"),
            (replace_a_layer, "it carries replaced layers (such as compiled blocks)"),
            (claim_to_be_dynamic, "ComfyUI moves its weights (dynamic VRAM)"),
            (leave_a_weight, "a part of its weights is not in GPU memory (low VRAM)"),
            (change_a_weight, "functions change its weights in every pass"),
            (hook_a_layer, "its layers have hooks"),
        ):
            patcher = load_compiled(load_miniature())
            change(patcher)
            assert list_obstacles(patcher) == [reason], (list_obstacles(patcher), reason)
        patcher = load_compiled(load_miniature())
        override_attention(patcher)
        session = begin_miniature(patcher)
        for _ in range(2):
            with sampling.open_sampler(patcher, session, 1) as sampler:
                assert not isinstance(sampler.model, CompiledWan)
                assert "compiled" not in sampler.model.kernel
        assert describe_compiling(patcher) == "not compiled: a node overrides its attention"
        assert messages.warnings.count("the MODEL is not compiled: a node overrides its attention") == 1
        patch.undo()
        patch.setattr(sampling, "open_block_store", lambda: None)
        untraceable = load_compiled(load_miniature())
        with sampling.open_sampler(untraceable, begin_miniature(untraceable), 1) as sampler:
            assert not isinstance(sampler.model, CompiledWan)
        assert "not compiled: PyTorch cannot trace its layers or its attention" in describe_compiling(untraceable)


def check_weights_that_move_after_the_key_end_the_video() -> None:
    compiled = load_compiled(load_miniature())
    with use_pytorch_attention():
        session = begin_miniature(compiled)
        with sampling.open_sampler(compiled, session, 1) as sampler:
            assert isinstance(sampler.model, CompiledWan)
            leave_a_weight(compiled)
            with pytest.raises(SamplingError, match="was compiled, but now a part of its weights is not in GPU memory"):
                sampler.sample(session, 1)


def override_attention(patcher: ModelPatcher) -> None:
    options = patcher.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda original, *args, **kwargs: original(*args, **kwargs)


def replace_a_layer(patcher: ModelPatcher) -> None:
    patcher.add_object_patch("diffusion_model.blocks.0.ffn", torch.nn.Identity())


def claim_to_be_dynamic(patcher: ModelPatcher) -> None:
    patcher.is_dynamic = lambda: True


def leave_a_weight(patcher: ModelPatcher) -> None:
    layer = patcher.model.diffusion_model.blocks[0].self_attn.q
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"), requires_grad=False)


def change_a_weight(patcher: ModelPatcher) -> None:
    patcher.model.diffusion_model.blocks[0].self_attn.q.weight_function = [lambda weight: weight]


def hook_a_layer(patcher: ModelPatcher) -> None:
    patcher.model.diffusion_model.blocks[0].ffn.register_forward_hook(lambda *_: None)


class Messages(logging.Handler):
    """Collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())
