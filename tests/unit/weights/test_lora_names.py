"""Every spelling of a LoRA's names gives the same merge."""

import pytest
import torch
from tiny_loras import PEFT, assert_same, merge, name_as_kohya, rename_tensors, save_tensors

from longlive.errors import WeightsError
from longlive.weights.describe import describe_file
from longlive.weights.lora import Lora


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix(PEFT),
        lambda name: name.replace(PEFT, PEFT + "model."),
        lambda name: name.replace(PEFT, PEFT + "_fsdp_wrapped_module."),
        lambda name: name.replace(PEFT, "diffusion_model."),
        lambda name: name.replace(PEFT, "diffusion_model.").replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda name: name.replace(".weight", ""),
        name_as_kohya,
        lambda name: name_as_kohya(name).replace("lora_unet_", "lora_unet__"),
    ],
)
def test_every_spelling_gives_the_same_merge(base, adapter, lora, tmp_path, rename):
    other = Lora.read(save_tensors(tmp_path, rename_tensors(adapter, rename), "other.pt"))
    assert_same(merge(base, other)[0], merge(base, lora)[0])


@pytest.mark.parametrize("part", ["generator_lora", "model", "state_dict"])
def test_the_generators_adapter_is_taken_and_the_critics_is_not(base, adapter, lora, tmp_path, part):
    critic = {name: tensor + 1 for name, tensor in adapter.items()}
    path = save_tensors(tmp_path, {"critic_lora": critic, part: adapter, "step": 3000}, "train.pt")
    assert_same(merge(base, Lora.read(path))[0], merge(base, lora)[0])


def test_a_critics_adapter_alone_is_refused(adapter, tmp_path):
    with pytest.raises(WeightsError, match="holds critic_lora, step; expected"):
        Lora.read(save_tensors(tmp_path, {"critic_lora": adapter, "step": 1}))


def test_kohyas_names_reach_beyond_the_blocks(base, tmp_path):
    names = {"head_head": "head.head", "text_embedding_0": "text_embedding.0", "time_projection_1": "time_projection.1"}
    names |= {"blocks_1_ffn_2": "blocks.1.ffn.2"}
    state = {}
    for flat, module in names.items():
        outputs, inputs = base[f"{module}.weight"].shape
        state[f"lora_unet_{flat}.lora_down.weight"] = torch.randn(2, inputs)
        state[f"lora_unet_{flat}.lora_up.weight"] = torch.randn(outputs, 2)
    lora = Lora.read(save_tensors(tmp_path, state))
    assert set(lora.pairs) == set(names.values())
    assert merge(base, lora)[1].warning == ""


def test_what_goes_to_comfyui_comes_back_the_same(base, lora, tmp_path):
    state = lora.as_comfy_state()
    assert len(state) == 60
    assert all(name.startswith("diffusion_model.blocks.") for name in state)
    assert state["diffusion_model.blocks.0.self_attn.q.alpha"].item() == 4
    assert_same(merge(base, Lora.read(save_tensors(tmp_path, state, "comfy.safetensors")))[0], merge(base, lora)[0])


def test_a_lora_is_described(adapter, tmp_path):
    text = describe_file(save_tensors(tmp_path, {"generator_lora": adapter, "critic_lora": adapter}))
    assert "  kind      a LoRA for LongLive or Wan2.1" in text
    assert "  modules   20, such as blocks.0.cross_attn.k" in text
    assert "  rank      4, alpha 4" in text
