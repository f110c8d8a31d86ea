"""The one adapter to ComfyUI: its model as a causal model, its memory, previews, progress, interrupt and folders."""

import functools
import gc
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.errors import CheckpointError, ConditioningError, SessionError, TuningError
from ..longlive.model.attention import Attend
from ..longlive.model.causal import CausalWan
from ..longlive.model.checkpoint import COMPUTE_DTYPES, dtype_name, model_of
from ..longlive.model.wan import Geometry, WanModel, WanTree
from ..longlive.model.weights import Weights
from ..longlive.rollout import Pass, PassKind
from ..longlive.sampler import TEXTS_HELD, Sampler, memory_bytes, text_bytes
from ..longlive.session import Prompt, Session
from ..longlive.store import Store
from .identity import PREFIX, kernels, opaque, unrecognisable, weights_as_loaded

log = logging.getLogger(__name__)

WAN21_CHANNELS = 16
FORWARD_PATCHES = ("patches", "patches_replace", "wrappers")  # of transformer_options
SAMPLER_FUNCTIONS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)
HARMLESS = {"pooled_output", "unprojected"}  # of a CONDITIONING; Wan2.1 reads the embedding alone
STORE_BYTES = 4 << 30  # 90 minutes at 832 x 480
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
    device, dtype = patcher.load_device, patcher.model.get_dtype_inference()
    return CausalWan(
        tree=tree,
        geometry=Geometry.of_tree(tree),
        attend=host_attention(patcher),
        kernel=f"{device.type} {kernels(patcher)}",
        device=device,
        dtype=dtype,
        entry_dtype=torch.float32,  # as ComfyUI's own forward has it, whatever the weight is kept in
    )


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
    return tree


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
    """What the MODEL carries for ComfyUI's own samplers, and a causal rollout has no place for."""
    options = patcher.model_options.get("transformer_options", {})
    found = {
        "a model sampling (set the shift in LongLive Options)": "model_sampling" in patcher.object_patches,
        "patches of the forward": any(any(options.get(kind, {}).values()) for kind in FORWARD_PATCHES),
        "another forward (such as a compiled one)": "diffusion_model" in patcher.object_patches,
        "wrappers": any(any(wrappers.values()) for wrappers in patcher.wrappers.values()),
        "functions of a sampler": any(name in patcher.model_options for name in SAMPLER_FUNCTIONS),
    }
    return [name for name, carried in found.items() if carried]


@contextmanager
def sampling(patcher: ModelPatcher, session: Session, total_blocks: int) -> Iterator[Sampler]:
    """A sampler for `total_blocks` more blocks: memory announced, weights loaded, progress, previews and interrupt.

    Nothing is loaded before a block has to be computed; the memory is free again whatever happens.
    """
    model, unknown, unused = causal_model(patcher), opaque(patcher), ignored(patcher)
    if unused:
        log.warning("the MODEL carries %s, which a session cannot honour; ignored", " and ".join(unused))
    if unknown:
        log.warning("the MODEL carries %s: blocks made with it are not stored", " and ".join(unknown))
    progress = Progress(patcher, total_blocks, len(session.config.steps))
    sampler = Sampler(
        model,
        store=None if unknown else block_store(),
        watch=progress.step,
        found=progress.block,
        prepare=functools.partial(make_room, patcher, model, session),
    )
    patcher.pre_run()
    try:
        with on_device(patcher.load_device), sampler:
            yield sampler
    finally:
        patcher.cleanup()
        comfy.model_management.soft_empty_cache()


def make_room(patcher: ModelPatcher, model: CausalWan, session: Session) -> None:
    """Announce keys, values and activations to ComfyUI's memory management, and load the weights."""
    config, (_, _, channels, height, width) = session.config, session.block_shape
    keys = memory_bytes(model, config, session.height, session.width)
    log.info("a window of %d frames takes %.0f MB of keys and values", config.window, keys / 1e6)
    work = patcher.model.memory_required([1, channels, config.window, height, width])
    needed = keys + work + TEXTS_HELD * text_bytes(model)
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)


def on_device(device: torch.device) -> AbstractContextManager:
    """Make `device` the current one, where kernels that do not look at their tensors are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Progress:
    """Tells ComfyUI of each denoising step, with a picture of the newest frame, and obeys its interrupt."""

    def __init__(self, patcher: ModelPatcher, blocks: int, steps: int) -> None:
        self.steps = steps  # of a block
        self.bar = comfy.utils.ProgressBar(blocks * steps)
        self.previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def step(self, done: Pass) -> None:
        """A pass is over."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done.kind is not PassKind.DENOISE:
            return
        picture = None
        if self.previewer and done.clean is not None:
            picture = self.previewer.decode_latent_to_preview_image("JPEG", to_host(done.clean[:, -1:]))
        self.bar.update_absolute(self.bar.current + 1, preview=picture)

    def block(self) -> None:
        """A block was found in the store."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(self.bar.current + self.steps)


def counted(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Blocks in order, while ComfyUI shows how many are done and may interrupt."""
    bar = comfy.utils.ProgressBar(len(blocks))
    for block in blocks:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield block
        bar.update(1)


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


def block_store() -> Store:
    """Finished blocks on disk, so that an edit, an interrupt or a crash costs only what is new.

    Nothing is held in memory: ComfyUI's own cache does that, and frees it when told to.
    """
    return Store(
        Path(folder_paths.get_user_directory()) / "longlive" / "blocks", memory_bytes=0, disk_bytes=STORE_BYTES
    )


def session_path(name: str) -> Path:
    """Where the session `name` lies, in ComfyUI's output folder. Raises SessionError for a name that leaves it."""
    folder = output_folder()
    path = inside(folder, name, ".safetensors")
    if path is None:
        raise SessionError(
            f"{name!r} is no name for a session, which is kept in {folder}; use a plain name such as my_film"
        )
    return path


def tuning_folder(name: str) -> Path:
    """Where the tuning `name` is kept, in ComfyUI's output folder. Raises TuningError for a name that leaves it."""
    folder = output_folder() / "tuning"
    path = inside(folder, name)
    if path is None:
        raise TuningError(f"{name!r} is no name for a tuning, which is kept in {folder}; use a plain name: my_style")
    return path


def lora_path(name: str) -> Path:
    """Where the adapter `name` belongs, in the first of ComfyUI's folders for LoRAs."""
    folder = loras_folder()
    path = inside(folder, name, ".safetensors")
    if path is None:
        raise TuningError(f"{name!r} is no name for a LoRA in {folder}; use a plain name such as my_style")
    return path


def loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def output_folder() -> Path:
    return (Path(folder_paths.get_output_directory()) / "longlive").resolve()


def inside(folder: Path, name: str, suffix: str = "") -> Path | None:
    """The path of a name a user chose; None for one that leaves the folder, is hidden, or is no name."""
    path = (folder / f"{name.strip()}{suffix}").resolve() if name.isprintable() else folder
    return path if name.strip() and folder in path.parents and not path.name.startswith(".") else None


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
