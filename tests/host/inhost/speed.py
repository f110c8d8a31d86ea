"""Checks of exact, fast and fastest: what a MODEL computes with, what is left out and said; run inside a host."""

import gc
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.miniature import files
from comfyui_longlive.longlive.model import speed as library
from comfyui_longlive.longlive.model.eight_bit import EightBit
from comfyui_longlive.longlive.model.fused import is_onednn_usable
from comfyui_longlive.longlive.model.speed import Speed
from comfyui_longlive.longlive.model.tiny_vae import LatentSpace
from comfyui_longlive.longlive.weights.quantise import is_linear_of_layer
from comfyui_longlive.nodes import tuning
from comfyui_longlive.nodes.host import speed
from comfyui_longlive.nodes.host.identity import hash_model
from comfyui_longlive.nodes.host.model import as_causal_model, get_compute_dtype
from comfyui_longlive.nodes.host.tiny_vae import is_host_tiny_vae
from comfyui_longlive.nodes.options import Options
from comfyui_longlive.nodes.session import SessionInfo
from comfyui_longlive.nodes.sockets import LiveSession, SessionOptions
from compute import begin_session, extend_session, set_dtype
from eight_bit import LARGEST_ERRORS
from identity import load_model
from model_files import make_lora_weights
from safetensors.torch import save_file
from tiny_vae_weights import make_tiny_vae_weights

PEFT_PREFIX = "base_model.model."


def sample_block(patcher: ModelPatcher) -> torch.Tensor:
    return extend_session(patcher, begin_session(patcher)).blocks[0]


def find_kernel(patcher: ModelPatcher) -> str:
    """Find the name of what a session computes with."""
    means = speed.find_means(patcher)
    return as_causal_model(speed.choose_model(patcher, means), means).kernel


def check_the_default_is_exact() -> None:
    values = RolloutConfig().as_dict() | {"steps": "1000, 750, 500, 250"}
    assert Options.execute(**values).result == (SessionOptions(RolloutConfig(), Speed.EXACT),)
    patcher = load_model()
    assert speed.set_speed(patcher, Speed.EXACT) is patcher
    assert speed.choose_model(patcher, speed.find_means(patcher)) is patcher
    assert find_kernel(patcher) == as_causal_model(patcher).kernel
    back = speed.set_speed(speed.set_speed(patcher, Speed.FAST), Speed.EXACT)
    assert torch.equal(sample_block(back), sample_block(patcher))


def check_a_tuning_says_that_it_ignores_the_speed() -> None:
    tuned, said = [], []

    def begin(models, pairs, name: str, settings: SimpleNamespace):
        tuned.append(settings.rollout)
        raise InterruptedError

    rollout = RolloutConfig(window=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "TuningJob", begin)
        patch.setattr(tuning, "TuningSettings", SimpleNamespace)
        patch.setattr(tuning.log, "warning", lambda words, *values: said.append(words % values))
        for chosen in (Speed.EXACT, Speed.FAST):
            with pytest.raises(InterruptedError):
                tuning.Tuner.execute(None, None, None, None, "name", options=SessionOptions(rollout, chosen))
    assert tuned == [rollout, rollout]
    assert said == ["the speed fast is for sampling; a tuning computes exactly"]


def check_fast_keeps_the_weights() -> None:
    exact = load_model()
    fast = speed.set_speed(exact, Speed.FAST)
    assert hash_model(fast) == hash_model(exact)
    assert begin_session(fast).model == begin_session(exact).model
    torch.testing.assert_close(sample_block(fast), sample_block(exact), rtol=1e-4, atol=1e-4)
    is_joined = is_onednn_usable(torch.float32)
    assert find_kernel(fast) == find_kernel(exact) + " onednn" * is_joined
    assert torch.equal(sample_block(fast), sample_block(exact)) != is_joined


def check_what_is_not_here_is_left_out_and_said() -> str:
    fastest = speed.set_speed(load_model(), Speed.FASTEST)
    assert speed.choose_model(fastest, speed.find_means(fastest)) is fastest
    report = SessionInfo.execute(LiveSession(begin_session(fastest), fastest)).result[0]
    for words in ("speed: fastest\n", "left out: a tiny VAE", "left out: 8-bit attention cannot run here", "INT8"):
        assert words in report, report
    return report


def check_fastest_computes_with_8_bit_linears(form: EightBit = EightBit.INT8) -> float:
    """As where the kernels are: a LoRA is in the copy, which lives as long as its MODEL and has its dtype."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "find_int8_obstacle", lambda _: "")
        lora = {
            name.replace("base_model.model.", "diffusion_model."): part for name, part in make_lora_weights().items()
        }
        patched, _ = comfy.sd.load_lora_for_models(load_model(), None, lora, 1.0, 0)
        exact = set_dtype(patched, "bf16")
        fastest = speed.set_speed(exact, Speed.FASTEST)
        means = speed.find_means(fastest)
        assert means.form is form, means
        is_disabled = []
        load = comfy.sd.load_diffusion_model_state_dict
        patch.setattr(
            comfy.sd,
            "load_diffusion_model_state_dict",
            lambda state, *, disable_dynamic: (is_disabled.append(disable_dynamic), load(state))[1],
        )
        copy = speed.choose_model(fastest, means)
        assert speed.choose_model(fastest, means) is copy is not fastest
        assert is_disabled == [not fastest.is_dynamic()]
        patch.setattr(comfy.sd, "load_diffusion_model_state_dict", load)
        for name, weight in copy.model.diffusion_model.named_parameters():
            assert isinstance(weight, QuantizedTensor) == is_linear_of_layer(name), name
        assert get_compute_dtype(copy) is get_compute_dtype(exact) is torch.bfloat16
        assert f" {form} " in f"{find_kernel(fastest)} "
        assert hash_model(fastest) == hash_model(exact)
        expected, found = sample_block(exact).float(), sample_block(fastest).float()
        error = float((found - expected).norm() / expected.norm())
        assert 0 < error < 2 * LARGEST_ERRORS[form], error  # bf16 rounds, too
        without_lora = sample_block(set_dtype(load_model(), "bf16")).float()
        assert error < 0.5 * float((found - without_lora).norm() / expected.norm())

        again = speed.set_speed(exact, Speed.FASTEST)  # another session on the MODEL
        assert speed.choose_model(again, means) is not copy
        assert speed.choose_model(again, means).model is copy.model
        other = speed.set_speed(comfy.sd.load_lora_for_models(exact, None, lora, 1.0, 0)[0], Speed.FASTEST)
        assert speed.choose_model(other, means).model is not copy.model

        alive = weakref.ref(copy.model)
        del patched, exact, fastest, again, other, copy
        comfy.model_management.unload_all_models()
        gc.collect()
        assert alive() is None
    return error


def check_a_model_that_cannot_be_copied_is_computed_as_it_is() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "find_int8_obstacle", lambda _: "")
        patcher = load_model()
        patcher.add_object_patch("diffusion_model.blocks.0.ffn", patcher.model.diffusion_model.blocks[0].ffn)
        fastest = speed.set_speed(patcher, Speed.FASTEST)
        assert speed.choose_model(fastest, speed.find_means(fastest)) is fastest
        assert "which cannot be copied" in speed.describe_speed(fastest)


def check_fastest_decodes_with_a_tiny_vae_that_is_there() -> None:
    full = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files.VAE)))
    width = full.first_stage_model.decoder.head[0].gamma.shape[0]
    fastest, fast = (speed.set_speed(load_model(), each) for each in (Speed.FASTEST, Speed.FAST))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([folder], {".safetensors"}))
        patch.setattr(folder_paths, "filename_list_cache", {})
        assert speed.choose_vae(fastest, full, "auto") == (full, "auto")
        save_file(make_tiny_vae_weights(torch.float32), Path(folder) / "lighttaew2_1.safetensors")
        folder_paths.filename_list_cache.clear()
        assert speed.choose_vae(fastest, full, "auto") == (full, "auto")  # as small as the miniature's
        patch.setattr(speed, "BASE_WIDTH", width)
        assert speed.choose_vae(fast, full, "auto") == (full, "auto")
        vae, space = speed.choose_vae(fastest, full, "auto")
        assert space is LatentSpace.VAE
        assert is_host_tiny_vae(vae)
        assert speed.choose_vae(fastest, full, "network")[1] == "network"
        assert "takes lighttaew2_1.safetensors in place of a full VAE" in speed.describe_speed(fastest)
        foreign = SimpleNamespace(first_stage_model=None)
        assert speed.choose_vae(fastest, foreign, "auto") == (foreign, "auto")
