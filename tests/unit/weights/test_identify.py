"""What a weights file is follows from the names and shapes of its tensors."""

import pytest
from safetensors.torch import load_file
from tiny_weights import CAUSAL, REFERENCE, make_tensors

from longlive.errors import WeightsError
from longlive.weights.identify import Kind, identify
from longlive.weights.load import load_model
from longlive.weights.weights_file import normalise_names


def make_wan(channels, dim=32, *more):
    return make_tensors(
        "head.modulation",
        "blocks.0.self_attn.q.weight",
        *more,
        **{"patch_embedding.weight": (dim, channels, 1, 2, 2)},
    )


KINDS = [
    (Kind.WAN_T2V, make_wan(16)),
    (Kind.WAN_I2V, make_wan(36)),
    (Kind.WAN_I2V, make_wan(36, 32, "img_emb.proj.0.weight")),
    (Kind.WAN_I2V, make_wan(16, 32, "blocks.0.cross_attn.k_img.weight")),
    (Kind.WAN_5B, make_wan(48)),
    (Kind.WAN_VARIANT, make_wan(16, 32, "vace_patch_embedding.weight")),
    (Kind.WAN_VARIANT, make_wan(33)),
    (Kind.WAN_QUANTISED, make_wan(16, 32, "blocks.0.self_attn.q.scale_weight")),
    (Kind.WAN_QUANTISED, make_wan(16, 32, "scaled_fp8")),
    (Kind.WAN_DIFFUSERS, make_tensors("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight")),
    (Kind.VAE, make_tensors("encoder.downsamples.0.residual.0.gamma", "conv2.weight")),
    (
        Kind.VAE_22,
        make_tensors("encoder.downsamples.0.downsamples.0.residual.0.gamma", **{"conv2.weight": (48, 48, 1, 1, 1)}),
    ),
    (Kind.VAE_DIFFUSERS, make_tensors("quant_conv.weight", "decoder.mid_block.resnets.0.norm1.gamma")),
    (Kind.TINY_VAE, make_tensors("encoder.0.weight", "decoder.1.weight", "decoder.22.bias")),
    (Kind.UMT5, make_tensors("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight")),
    (Kind.UMT5, make_tensors("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")),
    (Kind.T5, make_tensors("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    (Kind.LORA, make_tensors("blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight")),
    (Kind.LORA, make_tensors("lora_unet_blocks_0_cross_attn_q.lora_down.weight")),
    (Kind.LORA, make_tensors("lora_unet__blocks_0_ffn_0.lora_down.weight")),
    (Kind.LORA_DIFFUSERS, make_tensors("transformer.blocks.0.attn1.to_q.lora_A.weight")),
    (Kind.LORA_FLUX, make_tensors("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight")),
    (Kind.LORA_FLUX, make_tensors("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight")),
    (Kind.LORA_SD, make_tensors("lora_unet_input_blocks_1_1_proj_in.lora_down.weight")),
    (Kind.LORA_SD, make_tensors("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight")),
    (Kind.LORA_OTHER, make_tensors("layers.0.feed_forward.w1.lora_A.weight")),
    (
        Kind.SDXL,
        make_tensors("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"),
    ),
    (Kind.SD, make_tensors("model.diffusion_model.input_blocks.0.0.weight")),
    (Kind.SD3, make_tensors("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight")),
    (Kind.SD_VAE, make_tensors("decoder.mid.block_1.norm1.weight")),
    (Kind.FLUX, make_tensors("double_blocks.0.img_attn.qkv.weight", "img_in.weight")),
    (
        Kind.HUNYUAN,
        make_tensors("txt_in.individual_token_refiner.blocks.0.norm1.weight", "double_blocks.0.img_attn.qkv.weight"),
    ),
    (Kind.LTX, make_tensors("model.diffusion_model.patchify_proj.weight")),
    (Kind.QWEN, make_tensors("transformer_blocks.0.attn.add_q_proj.weight")),
    (Kind.UNKNOWN, make_tensors("a.weight", "b.weight")),
]


@pytest.mark.parametrize(("kind", "tensors"), KINDS, ids=[f"{kind.name}-{i}" for i, (kind, _) in enumerate(KINDS)])
def test_a_kind_is_identified_by_its_tensors(kind, tensors):
    assert identify(normalise_names(tensors)) is kind


def test_all_kinds_are_tried():
    assert {kind for kind, _ in KINDS} == set(Kind)


@pytest.mark.parametrize(("kind", "tensors"), KINDS, ids=[f"{kind.name}-{i}" for i, (kind, _) in enumerate(KINDS)])
def test_only_text_to_video_weights_make_a_model(save, kind, tensors):
    path = save("file.safetensors", tensors)
    if kind is Kind.WAN_T2V:
        with pytest.raises(WeightsError, match="lacks"):
            load_model(path, num_heads=2)
    else:
        with pytest.raises(WeightsError) as caught:
            load_model(path)
        what, expected, cure = str(caught.value).split("; ")
        assert what.startswith(f"file.safetensors holds {kind}")
        assert expected == "expected LongLive or Wan2.1 text-to-video weights"
        assert cure


def test_the_recorded_files_are_what_they_are():
    assert identify(load_file(CAUSAL)) is Kind.WAN_T2V
    for name, kind in (("vae", Kind.VAE), ("t5", Kind.UMT5)):
        tensors = load_file(REFERENCE / f"{name}.safetensors")
        bare = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
        assert identify(bare) is kind


def test_the_cure_for_an_unknown_file_names_what_was_found(save):
    with pytest.raises(WeightsError, match=r"unknown model \(a, b, c, \.\.\.\); .*; download models/longlive_base\.pt"):
        load_model(save("x.safetensors", make_tensors("a", "b", "c", "d")))
