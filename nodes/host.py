"""The adapter to ComfyUI's models: a MODEL as a causal model, a CONDITIONING as a prompt, memory given back."""

import gc
import logging
import re
import traceback
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import comfy.lora
import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.errors import CheckpointError, ConditioningError
from ..longlive.model.attention import Attend
from ..longlive.model.causal import CausalWan
from ..longlive.model.checkpoint import COMPUTE_DTYPES, dtype_name, model_of
from ..longlive.model.wan import Geometry, WanModel, WanTree
from ..longlive.model.weights import Weights
from ..longlive.session import Prompt
from .identity import PREFIX, is_called, kernels, unrecognisable, weights_as_loaded

log = logging.getLogger(__name__)

WAN21_CHANNELS = 16
CALLED_PARTS = {"patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head"}
HONOURED_PATCHES = {"manual_cast_dtype", "model_sampling"}  # of objects outside the network, or named on their own
HONOURED_OPTIONS = {"optimized_attention_override"}  # of transformer_options
HARMLESS_OPTIONS = {"transformer_options", "disable_cfg1_optimization", "torch_compile_kwargs"}  # of model_options
HONOURED_CALLBACKS = {"on_clone", "on_load_after", "on_detach_after", "on_pre_run", "on_cleanup"}  # the host calls them
HARMLESS = {"pooled_output", "unprojected"}  # of a CONDITIONING; Wan2.1 reads the embedding alone
SIZE_CHECK = "longlive_size_check"  # attachment of a MODEL that makes one size only


def check_size(patcher: ModelPatcher, width: int, height: int) -> None:
    """Refuse pixels that a MODEL was not trained for, where it knows. Raises ConfigError."""
    check = patcher.get_attachment(SIZE_CHECK)
    if check:
        check(width, height)


def causal_model(patcher: ModelPatcher) -> CausalWan:
    """A MODEL as a causal model: its own sub-modules, attention and patches, on its device.

    Raises CheckpointError where the MODEL is not a Wan2.1 text-to-video network.
    """
    tree = wan_tree(patcher)
    device = patcher.load_device
    return CausalWan(
        tree=tree,
        geometry=Geometry.of_tree(tree),
        attend=host_attention(patcher),
        kernel=f"{device.type} {kernels(patcher)}",
        device=device,
        dtype=compute_dtype(patcher),
        entry_dtype=torch.float32,  # as ComfyUI's own forward has it, whatever the weight is kept in
    )


def compute_dtype(patcher: ModelPatcher) -> torch.dtype:
    """The dtype of activations: what a node set for this clone, else what the loader chose, else that of the weights.

    The network is shared by all clones of a MODEL and shows what a node set only while that clone is loaded.
    """
    return patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()


def wan_tree(
    patcher: ModelPatcher, what: str = "the MODEL", cure: str = "load longlive_base with LongLive Model Loader"
) -> WanTree:
    """The network of a MODEL. Raises CheckpointError where it is not a Wan2.1 text-to-video network."""
    tree = patcher.model.diffusion_model
    found = getattr(tree, "in_dim", None)
    is_text_to_video = getattr(tree, "model_type", None) == "t2v" and getattr(tree, "img_emb", None) is None
    if not (hasattr(tree, "time_projection") and hasattr(tree, "head") and is_text_to_video):
        raise CheckpointError(
            f"{what} is {type(patcher.model).__name__} ({getattr(tree, 'model_type', 'no Wan')}), expected a Wan2.1 "
            f"text-to-video network; {cure}"
        )
    if found != WAN21_CHANNELS or tree.out_dim != WAN21_CHANNELS:
        raise CheckpointError(
            f"{what} takes {found} latent channels and makes {tree.out_dim}, Wan2.1 text-to-video has "
            f"{WAN21_CHANNELS}; {cure}"
        )
    if more := parts_beyond(patcher):
        raise CheckpointError(
            f"{what} is {type(tree).__name__} with {', '.join(more)}, which a rollout would leave out; {cure}"
        )
    return tree


def parts_beyond(patcher: ModelPatcher) -> list[str]:
    """The parts of a network with weights that a text-to-video Wan2.1 has not: VACE's, S2V's, HuMo's and the like."""
    patched = {name.removeprefix(PREFIX).partition(".")[0] for name in patcher.object_patches_backup}
    children = patcher.model.diffusion_model.named_children()
    return [
        name for name, part in children if name not in CALLED_PARTS | patched and any(True for _ in part.parameters())
    ]


def check_whole(patcher: ModelPatcher, what: str, cure: str) -> None:
    """Refuse a MODEL whose weights cannot be copied: another kind of network, quantised, or changed unseen.

    Raises CheckpointError.
    """
    wan_tree(patcher, what, cure)
    if unknown := unrecognisable(patcher):
        raise CheckpointError(f"{what} carries {' and '.join(unknown)}, which cannot be copied; connect it without")
    dtypes = {weight.dtype for _, weight in weights_as_loaded(patcher)}
    if quantised := ", ".join(sorted(map(dtype_name, dtypes - {*COMPUTE_DTYPES}))):
        raise CheckpointError(
            f"{what} is quantised (its weights are {quantised}), and only whole weights can be tuned with; "
            f"load a file of bf16, fp16 or fp32 with weight_dtype default"
        )


def copied(patcher: ModelPatcher, dtype: torch.dtype, what: str, cure: str) -> WanModel:
    """A network of our own with the weights of a MODEL, the LoRAs on them included; the MODEL is only read.

    Raises CheckpointError for another kind of network, and for weights that are quantised or change unseen.
    """
    check_whole(patcher, what, cure)
    geometry = Geometry.of_tree(wan_tree(patcher, what, cure))
    weights = {name: patched(patcher, name, weight).to(dtype) for name, weight in weights_as_loaded(patcher)}
    found = Weights(path=Path(what), tensors=weights, layout="bare", parts=(), prefix="", metadata={}, config={})
    tree, _ = model_of(found, dtype=dtype, num_heads=geometry.num_heads, text_len=geometry.text_len)
    return tree


@torch.no_grad()
def patched(patcher: ModelPatcher, name: str, weight: Tensor) -> Tensor:
    """A weight with what LoRAs add to it, in fp32; the very `weight` where they add nothing."""
    patches = patcher.patches.get(f"{PREFIX}{name}")
    return comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), name) if patches else weight


def host_attention(patcher: ModelPatcher) -> Attend:
    """The attention the user chose for ComfyUI, with whatever override the MODEL carries."""
    options = patcher.model_options.get("transformer_options", {})

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        heads = q_BTNH.shape[2]
        q, k, v = (x.flatten(2) for x in (q_BTNH, k_BSNH, v_BSNH))
        return optimized_attention(q, k, v, heads=heads, transformer_options=options).unflatten(-1, (heads, -1))

    return attend


def ignored(patcher: ModelPatcher) -> list[str]:
    """What the MODEL carries for ComfyUI's own samplers and forward, and a causal rollout does not use."""
    options, patches = patcher.model_options, patcher.object_patches
    found = {
        "patched objects": [name for name in patches if name not in HONOURED_PATCHES and not is_called(name)],
        "options of the forward": filled(options.get("transformer_options", {}), HONOURED_OPTIONS),
        "options of a sampler": filled(options, HARMLESS_OPTIONS),
        "wrappers": [f"{key or kind}" for kind, keys in patcher.wrappers.items() for key in filled(keys)],
        "callbacks": filled(patcher.callbacks, HONOURED_CALLBACKS),
    }
    listed = [f"{what} ({', '.join(sorted({*map(without_numbers, names)}))})" for what, names in found.items() if names]
    return [*listed, *["a shift (set it in LongLive Options)"] * ("model_sampling" in patches)]


def filled(options: dict, known: Collection[str] = ()) -> list[str]:
    """The names of options that hold something, but for `known` ones."""
    return [name for name, value in options.items() if name not in known and not is_empty(value)]


def is_empty(value: object) -> bool:
    """Whether containers in containers hold nothing."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, list | tuple) and all(map(is_empty, value)))


def without_numbers(name: str) -> str:
    """One name for the same thing in all layers: `blocks.*.cross_attn.forward`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def on_device(device: torch.device) -> AbstractContextManager:
    """Make `device` the current one, where kernels that do not look at their tensors are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_host(latents_BFCHW: Tensor) -> Tensor:
    """ComfyUI's order of axes, [B, C, F, H, W]."""
    return latents_BFCHW.transpose(1, 2)


def to_latent(patcher: ModelPatcher, latents_BFCHW: Tensor) -> dict[str, Tensor]:
    """A LATENT of the VAE's space for the nodes of ComfyUI."""
    return {"samples": patcher.model.process_latent_out(to_host(latents_BFCHW).float())}


def prompt_of(conditioning: list, patcher: ModelPatcher) -> Prompt:
    """The one prompt embedding of a CONDITIONING. Raises ConditioningError for several, or one of another width."""
    prompt = any_prompt_of(conditioning)
    check_width(prompt.embedding, patcher)
    return prompt


def any_prompt_of(conditioning: list) -> Prompt:
    """The same, for whatever model. Raises ConditioningError for several."""
    if len(conditioning) != 1:
        raise ConditioningError(
            f"the CONDITIONING holds {len(conditioning)} prompts, a segment has one; "
            f"connect one CLIP Text Encode and switch prompts with LongLive Switch Prompt"
        )
    embedding, settings = conditioning[0]
    unused = sorted(name for name, value in settings.items() if value is not None and name not in HARMLESS)
    if unused:
        log.warning("the CONDITIONING carries %s, which a session cannot honour; ignored", ", ".join(unused))
    return Prompt.of(embedding)


def check_width(embedding: Tensor, patcher: ModelPatcher) -> None:
    """Refuse an embedding that a MODEL cannot read. Raises ConditioningError."""
    width, expected = embedding.shape[-1], patcher.model.diffusion_model.text_dim
    if width != expected:
        raise ConditioningError(
            f"the CONDITIONING is {width} wide, this model reads {expected}; "
            f"encode the prompt with the umT5-xxl text encoder (CLIP loader, type wan)"
        )


@contextmanager
def given_back() -> Iterator[None]:
    """Room for something large that is not ComfyUI's: its models leave before, and nothing stays afterwards.

    An error keeps the frames it passed, and these what they held: they are emptied.
    """
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        yield
    except BaseException as error:
        passed: BaseException | None = error
        while passed:
            traceback.clear_frames(passed.__traceback__)
            passed = passed.__cause__ or passed.__context__
        raise
    finally:
        gc.collect()
        comfy.model_management.soft_empty_cache()
