"""Checks of the dtype a MODEL computes in, patches that last for one run and announced memory; run inside a host."""

from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_extras.nodes_model_advanced import ModelComputeDtype
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.model.wan import Geometry
from comfyui_longlive.longlive.session.session import Session
from comfyui_longlive.nodes.host import sampling, tiny_vae
from comfyui_longlive.nodes.host.model import as_causal_model
from comfyui_longlive.nodes.session import NewSession
from identity import load_model
from model_files import GEOMETRY

GIB = 1 << 30


def set_dtype(patcher: ModelPatcher, dtype: str) -> ModelPatcher:
    """Apply ComfyUI's ModelComputeDtype; its schema differs between releases, its method does not."""
    [patched] = ModelComputeDtype().patch(patcher, dtype)
    return patched


def begin_session(patcher: ModelPatcher) -> Session:
    embedding = torch.randn(1, 8, GEOMETRY.text_dim, generator=torch.Generator().manual_seed(0))
    return NewSession.execute(patcher, 32, 32, 7, [[embedding, {}]]).result[0].session


def extend_session(patcher: ModelPatcher, session: Session) -> Session:
    """Sample one more block without a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "open_block_store", lambda: None)
        with sampling.open_sampler(patcher, session, 1) as sampler:
            return sampler.sample(session, 1)


def check_compute_dtype() -> None:
    """A dtype set by a node holds from the first block on, in every later node, and in no clone without it."""
    plain = load_model()
    patched = set_dtype(plain, "bf16")
    session = begin_session(patched)
    assert session.dtype is torch.bfloat16
    first = extend_session(patched, session)
    second = extend_session(patched, first)
    assert second.dtype is torch.bfloat16

    again = extend_session(patched, begin_session(patched))  # the same graph, queued again
    assert torch.equal(again.blocks[0], first.blocks[0])

    unpatched = extend_session(plain, begin_session(plain))  # the patched clone is loaded
    assert unpatched.dtype is torch.float32
    assert extend_session(patched, again).dtype is torch.bfloat16
    difference = (unpatched.blocks[0] - first.blocks[0].float()).abs().max()
    assert 0 < difference < 0.5, difference


def check_patches_of_a_run_rule_the_key() -> None:
    """Nodes such as KJNodes' Model Patch Torch Settings change arithmetic when a run begins and restore it after."""
    matmul = torch.backends.cuda.matmul
    switched = SimpleNamespace(flag=False)
    plain, patched = load_model(), load_model()
    patched.add_callback(CallbacksMP.ON_PRE_RUN, lambda _: setattr(switched, "flag", True))
    patched.add_callback(CallbacksMP.ON_CLEANUP, lambda _: setattr(switched, "flag", False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(matmul), "allow_fp16_accumulation", property(lambda _: switched.flag), raising=False)
        kernels = []
        for patcher in (plain, patched):
            with sampling.open_sampler(patcher, begin_session(patcher), 1) as sampler:
                kernels.append(sampler.model.kernel)
                assert sampler.model.kernel == as_causal_model(patcher).kernel  # as it is while blocks are made
        assert kernels[0] != kernels[1]
    assert not switched.flag


def check_a_failed_start_is_cleaned_up() -> None:
    """What a run switched on is switched off when a later callback fails."""
    events: list[str] = []
    patcher = load_model()

    def failing(_) -> None:
        events.append("on")
        raise RuntimeError("no such kernel")

    patcher.add_callback(CallbacksMP.ON_PRE_RUN, failing)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, lambda _: events.append("off"))
    session = begin_session(patcher)
    with pytest.raises(RuntimeError, match="no such kernel"), sampling.open_sampler(patcher, session, 1):
        pass
    assert events == ["on", "off"]


def check_a_preview_that_takes_the_room_of_the_model() -> None:
    """A preview may load a small VAE; on a full card that unloads the network in the middle of a block."""
    patched = set_dtype(load_model(), "bf16")
    expected = extend_session(patched, begin_session(patched)).blocks[0]
    evicted: list[bool] = []

    def decode_latent_to_preview_image(*_) -> None:
        evicted.append(patched in comfy.model_management.loaded_models())
        comfy.model_management.unload_all_models()

    previewer = SimpleNamespace(decode_latent_to_preview_image=decode_latent_to_preview_image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vae.latent_preview, "get_previewer", lambda *_: previewer)
        assert torch.equal(extend_session(patched, begin_session(patched)).blocks[0], expected)
    assert evicted == [True] * 4


def check_announced_memory() -> list[float]:
    """Return the GiB announced besides keys and values at 832 x 480 and 1280 x 720, without flash attention."""
    true_size = Geometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, freq_dim=256, text_dim=4096)
    patcher = build_on_meta(true_size)
    announced: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comfy.model_management, "load_models_gpu", lambda _, memory_required: announced.append(memory_required)
        )
        model = as_causal_model(patcher)
        for width, height in ((832, 480), (1280, 720)):
            session = Session.start(
                None,
                model="true size",
                config=RolloutConfig(),
                height=height,
                width=width,
                seed=0,
                dtype=model.dtype,
                channels=model.geometry.in_dim,
            )
            keys = sampling.count_cache_bytes(model, session.config, height, width)
            sampling.make_room(patcher, model, session, held=0)
            sampling.make_room(patcher, model, session, held=keys)
            assert announced.pop(-2) - announced[-1] == keys  # what is there already is not announced again
    return [num_bytes / GIB for num_bytes in announced]


def build_on_meta(geometry: Geometry) -> ModelPatcher:
    """Build a MODEL of real size on the meta device, in bf16."""
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": geometry.dim,
            "ffn_dim": geometry.ffn_dim,
            "num_heads": geometry.num_heads,
            "num_layers": geometry.num_layers,
            "in_dim": 16,
            "out_dim": 16,
            "patch_size": (1, 2, 2),
            "freq_dim": 256,
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
        }
    )
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, device=torch.device("meta"))
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
