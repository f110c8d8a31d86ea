"""Checks of what a MODEL carries beside weights: honoured, ignored with a warning, or refused; run inside a host."""

from types import SimpleNamespace

import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_rope import ScaleROPE
from comfyui_longlive.longlive.errors import WeightsError
from comfyui_longlive.nodes.host.identity import hash_model, is_called, list_opaque
from comfyui_longlive.nodes.host.model import get_wan_tree, list_ignored
from compute import begin_session, extend_session, set_dtype
from identity import load_model
from model_files import GEOMETRY

SIZES = {
    "dim": 256,
    "ffn_dim": 512,
    "num_heads": 2,
    "num_layers": 8,
    "device": torch.device("meta"),
    "dtype": torch.float32,
    "operations": comfy.ops.disable_weight_init,
}


def with_nag(patcher):
    """Patch one method of each layer, as KJNodes' WanVideo NAG and Enhance A Video do."""
    patched = patcher.clone()
    for i in range(GEOMETRY.num_layers):
        name = f"diffusion_model.blocks.{i}.cross_attn.forward"
        patched.add_object_patch(name, lambda x, context, **_: torch.zeros_like(x))
    return patched


def check_what_is_ignored_is_named() -> None:
    plain = load_model()
    compiled, prepared, empty = (plain.clone() for _ in range(3))
    set_torch_compile_wrapper(model=compiled, backend="eager")
    prepared.add_callback(CallbacksMP.ON_PREPARE_STATE, lambda *_: None)
    empty.model_options["transformer_options"] |= {"patches": {}, "patches_replace": {"dit": {}}, "wrappers": {"a": {}}}
    replaced = plain.clone()
    replaced.set_model_patch_replace(lambda *_: None, "dit", "double_block", 0)
    rescaled = RescaleCFG().patch(plain, 0.7)[0]
    shifted = ModelSamplingSD3().patch(plain, 8.0)[0]
    rotated = ScaleROPE.execute(plain, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0).result[0]
    cached = EasyCacheNode.execute(plain, 0.2, 0.15, 0.95, False).result[0]
    windowed = WanContextWindowsManualNode.execute(
        plain, 81, 30, "standard_static", 1, False, "pyramid", freenoise=False
    ).result[0]
    for patcher, words in (
        (plain, []),
        (empty, []),
        (set_dtype(plain, "bf16"), []),
        (with_nag(plain), ["patched objects (diffusion_model.blocks.*.cross_attn.forward)"]),
        (rotated, ["options of the forward (rope_options)"]),
        (replaced, ["options of the forward (patches_replace)"]),
        (rescaled, ["options of a sampler (sampler_cfg_function)"]),
        (windowed, ["options of a sampler (context_handler)", "wrappers (ContextWindows_prepare_sampling)"]),
        (cached, ["options of the forward (easycache)", "wrappers (easycache)"]),
        (compiled, []),
        (prepared, ["callbacks (on_prepare_state)"]),
        (shifted, ["a shift (set it in LongLive Options)"]),
    ):
        assert list_ignored(patcher) == words, (list_ignored(patcher), words)


def check_what_is_ignored_changes_nothing() -> None:
    """It stays the same model, and its blocks are stored."""
    plain = load_model()
    nag = with_nag(plain)
    assert list_opaque(nag) == []
    assert hash_model(nag) == hash_model(plain)
    expected = extend_session(plain, begin_session(plain)).blocks[0]
    assert torch.equal(extend_session(nag, begin_session(nag)).blocks[0], expected)


def check_what_is_called_is_honoured() -> None:
    """It is opaque, because its code cannot be compared."""
    plain = load_model()
    expected = extend_session(plain, begin_session(plain)).blocks[0]
    for name in (
        "blocks.0.ffn",
        "blocks.0.ffn.forward",
        "blocks.1.self_attn.q.forward",
        "blocks.0.norm1.forward",
        "head.head.forward",
    ):
        patched, name = load_model(), f"diffusion_model.{name}"
        original = patched.get_model_object(name)
        stronger = torch.nn.Identity()
        stronger.forward = lambda *args, original=original: 2 * original(*args)
        patched.add_object_patch(name, stronger.forward if name.endswith("forward") else stronger)
        assert list_opaque(patched) == ["replaced layers (such as compiled blocks)"], name
        assert list_ignored(patched) == [], name
        assert not torch.equal(extend_session(patched, begin_session(patched)).blocks[0], expected), name
    for name in ("diffusion_model", "diffusion_model.blocks.3", "diffusion_model.blocks.3.self_attn"):
        assert is_called(name)
    for name in ("diffusion_model.forward", "diffusion_model.head.forward", "latent_format", "diffusion_model_2"):
        assert not is_called(name)


def check_networks_with_more_to_them_are_refused() -> None:
    wan = comfy.ldm.wan.model
    for network, part in (
        (wan.VaceWanModel(model_type="t2v", vace_layers=2, vace_in_dim=96, **SIZES), "vace_patch_embedding"),
        (wan.CameraWanModel(model_type="t2v", in_dim=16, in_dim_control_adapter=24, **SIZES), "control_adapter"),
        (wan.HumoWanModel(model_type="t2v", audio_token_num=16, **SIZES), "audio_proj"),
        (wan.WanModel_S2V(model_type="t2v", in_dim=16, audio_inject_layers=[0, 4], **SIZES), "casual_audio_encoder"),
        (wan.WanModel(model_type="t2v", in_dim_ref_conv=16, **SIZES), "ref_conv"),
    ):
        patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=network), object_patches_backup={})
        with pytest.raises(WeightsError, match=f"the MODEL is {type(network).__name__} with .*{part}.*which a session"):
            get_wan_tree(patcher)
    whole = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=wan.WanModel(model_type="t2v", **SIZES)), object_patches_backup={}
    )
    get_wan_tree(whole)
