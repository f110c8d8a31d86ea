"""What a set of weights is: a table of names that tell one kind from another (Wan2.1, arXiv 2503.20314).

Shapes decide where names do not. Knows released names, no file. Causal and bidirectional networks have the same names
and cannot be told apart here.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from torch import Tensor

from ..errors import WeightsError, shorten
from ..model.wan import Geometry


class Kind(StrEnum):
    """What weights may be, as the noun of a message."""

    WAN_T2V = "Wan2.1 text-to-video weights"
    WAN_I2V = "Wan image-to-video weights"
    WAN_5B = "Wan2.2 5B weights (48 latent channels, as LongLive 2.0)"
    WAN_VARIANT = "weights of a Wan variant with inputs of its own"
    WAN_QUANTISED = "quantised Wan weights"
    WAN_DIFFUSERS = "Wan weights under diffusers names"
    VAE = "a Wan2.1 VAE"
    VAE_22 = "a Wan2.2 VAE (48 latent channels)"
    VAE_DIFFUSERS = "a Wan VAE under diffusers names"
    TINY_VAE = "a tiny VAE (TAEHV) for Wan2.1 or another video model"
    UMT5 = "a umT5 text encoder"
    T5 = "a T5 text encoder, not umT5"
    LORA = "a LoRA for LongLive or Wan2.1"
    LORA_DIFFUSERS = "a Wan LoRA under diffusers names"
    LORA_FLUX = "a LoRA for Flux"
    LORA_SD = "a LoRA for SD or SDXL"
    LORA_OTHER = "a LoRA for another model"
    SDXL = "an SDXL checkpoint"
    SD = "an SD checkpoint"
    SD3 = "an SD3 checkpoint"
    SD_VAE = "an image VAE"
    FLUX = "a Flux checkpoint"
    HUNYUAN = "HunyuanVideo weights"
    LTX = "LTX video weights"
    QWEN = "Qwen-Image weights"
    UNKNOWN = "weights of an unknown model"


NAMES_OF_KIND = (  # the first row whose names are all found decides, so a variant stands above its base
    (Kind.WAN_VARIANT, "head.modulation", "vace_patch_embedding.weight"),
    (Kind.WAN_VARIANT, "head.modulation", "control_adapter.conv.weight"),
    (Kind.WAN_VARIANT, "head.modulation", "ref_conv.weight"),
    (Kind.WAN_VARIANT, "head.modulation", "patch_embedding_pose.weight"),
    (Kind.WAN_VARIANT, "head.modulation", "patch_embedding_mask.weight"),
    (Kind.WAN_I2V, "head.modulation", "img_emb.proj.0.weight"),
    (Kind.WAN_I2V, "head.modulation", "blocks.0.cross_attn.k_img.weight"),
    (Kind.WAN_T2V, "head.modulation"),
    (Kind.WAN_DIFFUSERS, "condition_embedder.time_proj.weight"),
    (Kind.VAE_22, "encoder.downsamples.0.downsamples.0.residual.0.gamma"),
    (Kind.VAE_22, "decoder.upsamples.0.upsamples.0.residual.0.gamma"),
    (Kind.VAE, "encoder.downsamples.0.residual.0.gamma"),
    (Kind.VAE, "decoder.upsamples.0.residual.0.gamma"),
    (Kind.VAE_DIFFUSERS, "decoder.mid_block.resnets.0.norm1.gamma"),
    (Kind.TINY_VAE, "decoder.1.weight", "decoder.22.bias"),
    (Kind.UMT5, "blocks.0.pos_embedding.embedding.weight", "token_embedding.weight"),
    (Kind.UMT5, "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),  # T5 has it in block 0 alone
    (Kind.T5, "encoder.block.0.layer.0.SelfAttention.q.weight"),
    (Kind.SDXL, "input_blocks.0.0.weight", "label_emb.0.0.weight"),
    (Kind.SD, "input_blocks.0.0.weight"),
    (Kind.SD, "down_blocks.0.resnets.0.conv1.weight"),
    (Kind.SD3, "joint_blocks.0.context_block.attn.qkv.weight"),
    (Kind.SD_VAE, "decoder.mid.block_1.norm1.weight"),
    (Kind.HUNYUAN, "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    (Kind.FLUX, "double_blocks.0.img_attn.qkv.weight"),
    (Kind.FLUX, "single_transformer_blocks.0.attn.to_q.weight"),
    (Kind.LTX, "patchify_proj.weight"),
    (Kind.QWEN, "transformer_blocks.0.attn.add_q_proj.weight"),
)
KIND_OF_CHANNELS = {16: Kind.WAN_T2V, 36: Kind.WAN_I2V, 48: Kind.WAN_5B}  # of the patch embedding
CONVOLUTION_DIMS = 5  # of a weight: out, in, frames, rows, columns
ADAPTER_NAME = re.compile(r"[._](lora|hada|lokr)[._]")
PATTERNS_OF_LORA_KIND = (
    (Kind.LORA, re.compile(r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._](q|k|v|o|0|2|k_img|v_img)\.")),
    (Kind.LORA_DIFFUSERS, re.compile(r"(^|\.)blocks[._]\d+[._](attn1|attn2|ffn[._]net)[._]")),
    (Kind.LORA_FLUX, re.compile(r"double_blocks|single_blocks|single_transformer_blocks")),
    (Kind.LORA_SD, re.compile(r"lora_te|(input|output|down|up|mid)_blocks?[._]")),
)
QUANTISED = (".comfy_quant", ".scale_weight", "scaled_fp8", ".weight_scale")
CURES = {
    Kind.WAN_5B: "use LongLive 1.0 or Wan2.1 weights",
    Kind.WAN_QUANTISED: "load them with ComfyUI's own diffusion model loader, or use bf16 weights",
    Kind.VAE: "give it as the VAE",
    Kind.TINY_VAE: "give it as the VAE",
    Kind.UMT5: "give it as the text encoder",
    Kind.LORA: "give it as the LoRA, beside a model",
}
SIZES = {1536: ("1.3B", 30), 5120: ("14B", 40)}  # by width: the usual name, and the layers


def identify(tensors: Mapping[str, Tensor]) -> Kind:
    """Say what weights under released names are."""
    adapters = [name for name in tensors if ADAPTER_NAME.search(name)]
    if adapters:
        found = (kind for kind, pattern in PATTERNS_OF_LORA_KIND if any(pattern.search(name) for name in adapters))
        return next(found, Kind.LORA_OTHER)
    kind = next((kind for kind, *names in NAMES_OF_KIND if all(name in tensors for name in names)), Kind.UNKNOWN)
    patches = tensors.get("patch_embedding.weight")
    if kind is Kind.WAN_T2V and patches is not None and patches.dim() == CONVOLUTION_DIMS:
        kind = KIND_OF_CHANNELS.get(patches.shape[1], Kind.WAN_VARIANT)
    if kind is Kind.WAN_T2V and any(name.endswith(QUANTISED) for name in tensors):
        kind = Kind.WAN_QUANTISED
    return kind


def expect_kind(kind: Kind, tensors: Mapping[str, Tensor], *, source: str, expected: str, otherwise: str) -> None:
    """Raise WeightsError for weights of another kind; it says what was found, what was expected and the cure."""
    found = identify(tensors)
    if found is kind:
        return
    names = f" ({', '.join(shorten(name) for name in list(tensors)[:3])}, ...)" if found is Kind.UNKNOWN else ""
    raise WeightsError(f"{source} holds {found}{names}; expected {expected}; {CURES.get(found, otherwise)}")


def name_size(geometry: Geometry) -> str:
    """Name a network's size, `1.3B, width 1536`; the width alone if the size is unusual."""
    name, _ = SIZES.get(geometry.dim, ("", None))
    return f"{name}, width {geometry.dim}".removeprefix(", ")
