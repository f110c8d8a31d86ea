"""The adapter to ComfyUI's models: a MODEL as a causal model, and as a network to tune."""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

import comfy.lora
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...longlive.errors import WeightsError
from ...longlive.model.attention import Attend, choose_newest_attention, choose_quantised_attention
from ...longlive.model.causal import CausalWan
from ...longlive.model.dtypes import COMPUTE_DTYPES, name_dtype
from ...longlive.model.forms import choose_pointwise
from ...longlive.model.speed import Means
from ...longlive.model.vae import LATENT_CHANNELS
from ...longlive.model.wan import Geometry, WanModel, WanTree
from ...longlive.weights.load import build_model
from ...longlive.weights.weights_file import WeightsFile
from .compiling import COMPILE_KEY, COMPILE_OPTIONS
from .identity import (
    NETWORK_PREFIX,
    describe_kernels,
    get_attention_override,
    is_called,
    iter_loaded_weights,
    list_unrecognisable,
)
from .lending import lend_host_weights

Model: TypeAlias = ModelPatcher  # what travels on a MODEL socket

CALLED_PARTS = {"patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head"}
# What a MODEL may carry without the common warning.
HONOURED_PATCHES = {"manual_cast_dtype", "model_sampling"}  # object patches: the second has its own warning
HONOURED_OPTIONS = {"optimized_attention_override"}  # in transformer_options
HARMLESS_OPTIONS = {"transformer_options", "disable_cfg1_optimization", COMPILE_OPTIONS}  # in model_options
HONOURED_WRAPPERS = {COMPILE_KEY}
HONOURED_CALLBACKS = {"on_clone", "on_load_after", "on_detach_after", "on_pre_run", "on_cleanup"}  # all are called
PYTORCH_ATTENTION = "attention_pytorch"  # what ComfyUI uses unless the user chooses
SIZE_CHECK = "longlive_size_check"  # attachment of a MODEL that makes one size only
EXACT = Means()


def check_size(patcher: ModelPatcher, width: int, height: int) -> None:
    """Refuse a size that a MODEL was not trained for, if it says so. Raises ConfigError."""
    check = patcher.get_attachment(SIZE_CHECK)
    if check:
        check(width, height)


def as_causal_model(patcher: ModelPatcher, means: Means = EXACT) -> CausalWan:
    """Wrap a MODEL as a causal model, with its sub-modules, attention and patches, on its device.

    `means` are those of its speed. Raises WeightsError if the MODEL is not a Wan2.1 text-to-video network.
    """
    tree = get_wan_tree(patcher)
    device = patcher.load_device
    attend, own = find_own_attention(patcher, means) or (bind_attention(patcher), "")
    dtype = get_compute_dtype(patcher)
    pointwise = choose_pointwise(device, dtype, joined=means.joined, lend=lend_host_weights)
    return CausalWan(
        tree=tree,
        geometry=Geometry.of_tree(tree),
        attend=attend,
        kernel=" ".join(filter(None, [device.type, own, describe_kernels(patcher), means.form, pointwise.name])),
        device=device,
        dtype=dtype,
        entry_dtype=torch.float32,  # as in ComfyUI's own forward, whatever the weight's dtype
        pointwise=pointwise,
    )


def get_compute_dtype(patcher: ModelPatcher) -> torch.dtype:
    """Get the dtype of activations: the one a node set for this clone, else the loader's, else that of the weights.

    The network itself does not tell: all clones share it, and it has a clone's dtype only while that clone is loaded.
    """
    return patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()


def get_wan_tree(
    patcher: ModelPatcher, what: str = "the MODEL", cure: str = "load longlive_base with LongLive Model Loader"
) -> WanTree:
    """Get the network of a MODEL. Raises WeightsError if it is not a Wan2.1 text-to-video network."""
    tree = patcher.model.diffusion_model
    found = getattr(tree, "in_dim", None)
    is_text_to_video = getattr(tree, "model_type", None) == "t2v" and getattr(tree, "img_emb", None) is None
    if not (hasattr(tree, "time_projection") and hasattr(tree, "head") and is_text_to_video):
        raise WeightsError(
            f"{what} is {type(patcher.model).__name__} ({getattr(tree, 'model_type', 'not Wan')}), expected a Wan2.1 "
            f"text-to-video network; {cure}"
        )
    if found != LATENT_CHANNELS or tree.out_dim != LATENT_CHANNELS:
        raise WeightsError(
            f"{what} takes {found} latent channels and makes {tree.out_dim}, Wan2.1 text-to-video has "
            f"{LATENT_CHANNELS}; {cure}"
        )
    if more := list_extra_parts(patcher):
        raise WeightsError(
            f"{what} is {type(tree).__name__} with {', '.join(more)}, which a session cannot use; {cure}"
        )
    return tree


def list_extra_parts(patcher: ModelPatcher) -> list[str]:
    """List parts with weights that text-to-video Wan2.1 does not have: those of VACE, S2V, HuMo and the like."""
    patched = {name.removeprefix(NETWORK_PREFIX).partition(".")[0] for name in patcher.object_patches_backup}
    children = patcher.model.diffusion_model.named_children()
    return [
        name for name, part in children if name not in CALLED_PARTS | patched and any(True for _ in part.parameters())
    ]


def check_copyable(patcher: ModelPatcher, what: str, cure: str) -> None:
    """Refuse a MODEL whose weights cannot be copied: another network, quantised weights, or an opaque patch.

    Raises WeightsError.
    """
    get_wan_tree(patcher, what, cure)
    if unknown := list_unrecognisable(patcher):
        raise WeightsError(
            f"{what} carries {' and '.join(unknown)}, which cannot be copied; remove the node that adds this"
        )
    dtypes = {weight.dtype for _, weight in iter_loaded_weights(patcher)}
    if quantised := ", ".join(sorted(map(name_dtype, dtypes - {*COMPUTE_DTYPES.values()}))):
        raise WeightsError(
            f"{what} is quantised (its weights are {quantised}), expected whole weights; "
            f"load a file of bf16, fp16 or fp32 with weight_dtype default"
        )


def copy_network(patcher: ModelPatcher, dtype: torch.dtype, what: str, cure: str) -> WanModel:
    """Copy the weights of a MODEL, with the LoRAs applied to them, into our own network. The MODEL stays unchanged.

    Raises WeightsError as `check_copyable` does.
    """
    check_copyable(patcher, what, cure)
    geometry = Geometry.of_tree(get_wan_tree(patcher, what, cure))
    sizes = {"num_heads": geometry.num_heads, "text_len": geometry.text_len}
    weights = {name: apply_loras(patcher, name, weight).to(dtype) for name, weight in iter_loaded_weights(patcher)}
    weights_file = WeightsFile(
        path=Path(what), tensors=weights, layout="bare", parts=(), prefix="", metadata={}, config=sizes
    )
    tree, _ = build_model(weights_file, dtype=dtype)
    return tree


@torch.no_grad()
def apply_loras(patcher: ModelPatcher, name: str, weight: Tensor) -> Tensor:
    """Add to a weight what LoRAs add, in fp32; return the same `weight` if they add nothing."""
    patches = patcher.patches.get(f"{NETWORK_PREFIX}{name}")
    return comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), name) if patches else weight


def bind_attention(patcher: ModelPatcher) -> Attend:
    """Make the attention that the user chose for ComfyUI, with the MODEL's override if it has one."""
    options = patcher.model_options.get("transformer_options", {})

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        heads = q_BTNH.shape[2]
        q, k, v = (x.flatten(2) for x in (q_BTNH, k_BSNH, v_BSNH))
        return optimized_attention(q, k, v, heads=heads, transformer_options=options).unflatten(-1, (heads, -1))

    return attend


def find_own_attention(patcher: ModelPatcher, means: Means = EXACT) -> tuple[Attend, str] | None:
    """Find a faster kernel than ComfyUI's attention, with its name. None if a node or the user chose an attention."""
    if is_attention_chosen(patcher):
        return None
    choose = choose_quantised_attention if means.attention else choose_newest_attention
    return choose(patcher.load_device, get_compute_dtype(patcher))


def is_attention_chosen(patcher: ModelPatcher) -> bool:
    """Whether a node or a start option of ComfyUI chose another attention than PyTorch's."""
    return get_attention_override(patcher) is not None or optimized_attention.__name__ != PYTORCH_ATTENTION


def describe_attention(patcher: ModelPatcher, means: Means = EXACT) -> str:
    """Name the attention that a session computes with."""
    if own := find_own_attention(patcher, means):
        return own[1]
    overridden = get_attention_override(patcher) is not None
    return f"{optimized_attention.__name__}{', overridden by a node' if overridden else ''}"


def list_ignored(patcher: ModelPatcher) -> list[str]:
    """List what the MODEL carries for ComfyUI's samplers and forward that a causal rollout does not use."""
    options, patches = patcher.model_options, patcher.object_patches
    found = {
        "patched objects": [name for name in patches if name not in HONOURED_PATCHES and not is_called(name)],
        "options of the forward": list_filled(options.get("transformer_options", {}), HONOURED_OPTIONS),
        "options of a sampler": list_filled(options, HARMLESS_OPTIONS),
        "wrappers": [
            f"{key or kind}" for kind, keys in patcher.wrappers.items() for key in list_filled(keys, HONOURED_WRAPPERS)
        ],
        "callbacks": list_filled(patcher.callbacks, HONOURED_CALLBACKS),
    }
    listed = [f"{what} ({', '.join(sorted({*map(replace_numbers, names)}))})" for what, names in found.items() if names]
    return [*listed, *["a shift (set it in LongLive Options)"] * ("model_sampling" in patches)]


def list_filled(options: dict, known: Collection[str] = ()) -> list[str]:
    """List the options that hold something, without the `known` ones."""
    return [name for name, value in options.items() if name not in known and not is_empty(value)]


def is_empty(value: object) -> bool:
    """Whether nested containers hold nothing."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, list | tuple) and all(map(is_empty, value)))


def replace_numbers(name: str) -> str:
    """Give a part one name in all layers: `blocks.*.cross_attn.forward`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def use_device(device: torch.device) -> AbstractContextManager:
    """Make `device` the current one, for kernels that launch on it whatever device their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_host_axes(latents_BFCHW: Tensor) -> Tensor:
    """Bring latents into ComfyUI's order of axes, [B, C, F, H, W]."""
    return latents_BFCHW.transpose(1, 2)


def to_latent(patcher: ModelPatcher, latents_BFCHW: Tensor) -> dict[str, Tensor]:
    """Make a LATENT in VAE space, for other nodes of ComfyUI."""
    return {"samples": patcher.model.process_latent_out(to_host_axes(latents_BFCHW).float())}
