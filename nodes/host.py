"""The one adapter to ComfyUI: its model as a causal model, its memory, previews, progress, interrupt and folders."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.digest import digest_of_tensors
from ..longlive.errors import CheckpointError, ConditioningError, SessionError
from ..longlive.model.attention import Attend
from ..longlive.model.causal import CausalWan
from ..longlive.model.wan import Geometry
from ..longlive.rollout import Pass, PassKind
from ..longlive.sampler import Sampler, memory_bytes
from ..longlive.session import Prompt, Session
from ..longlive.store import Store

log = logging.getLogger(__name__)

WAN21_CHANNELS = 16
FORWARD_PATCHES = ("patches", "patches_replace", "wrappers")  # of transformer_options; a causal forward has no place
HARMLESS = {"pooled_output", "hooks", "unprojected"}  # of a CONDITIONING; Wan2.1 reads the embedding alone
STORE_BYTES = 4 << 30  # 90 minutes at 832 x 480

_digests: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def causal_model(patcher: ModelPatcher) -> CausalWan:
    """A MODEL as a causal model: its own sub-modules, attention and patches, on its device.

    Raises CheckpointError where the MODEL is not a Wan2.1 text-to-video network.
    """
    tree = patcher.model.diffusion_model
    found = getattr(tree, "in_dim", None)
    is_text_to_video = getattr(tree, "model_type", None) == "t2v" and getattr(tree, "img_emb", None) is None
    if not (hasattr(tree, "time_projection") and hasattr(tree, "head") and is_text_to_video):
        raise CheckpointError(
            f"the MODEL is {type(patcher.model).__name__} ({getattr(tree, 'model_type', 'no Wan')}), expected a Wan2.1 "
            f"text-to-video network; load longlive_base with LongLive Model Loader"
        )
    if found != WAN21_CHANNELS or tree.out_dim != WAN21_CHANNELS:
        raise CheckpointError(
            f"the MODEL takes {found} latent channels and makes {tree.out_dim}, Wan2.1 text-to-video has "
            f"{WAN21_CHANNELS}; load longlive_base with LongLive Model Loader"
        )
    device, dtype = patcher.load_device, patcher.model.get_dtype_inference()
    attend, name = host_attention(patcher)
    return CausalWan(tree, Geometry.of_tree(tree), attend, f"{device.type} {name}", device, dtype)


def host_attention(patcher: ModelPatcher) -> tuple[Attend, str]:
    """The attention the user chose for ComfyUI, with whatever override the MODEL carries, and a name for it."""
    options = patcher.model_options.get("transformer_options", {})
    override = options.get("optimized_attention_override")
    held = [cell.cell_contents for cell in getattr(override, "__closure__", None) or ()]  # such as a mode
    plain = [value for value in held if isinstance(value, str | int | float)]
    name = f"{optimized_attention.__name__} {getattr(override, '__qualname__', type(override).__qualname__)} {plain}"
    ignored = [f"{kind} of the forward" for kind in FORWARD_PATCHES if any(options.get(kind, {}).values())]
    if "model_sampling" in patcher.object_patches:
        ignored.append("a model sampling (set the shift in LongLive Options)")
    if ignored:
        log.warning("the MODEL carries %s, which a causal rollout cannot honour; ignored", " and ".join(ignored))

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        heads = q_BTNH.shape[2]
        q, k, v = (x.flatten(2) for x in (q_BTNH, k_BSNH, v_BSNH))
        return optimized_attention(q, k, v, heads=heads, transformer_options=options).unflatten(-1, (heads, -1))

    return attend, name


@contextmanager
def sampling(patcher: ModelPatcher, session: Session, total_blocks: int) -> Iterator[Sampler]:
    """A sampler for `total_blocks` more blocks: memory announced, weights loaded, progress, previews and interrupt."""
    model = causal_model(patcher)
    keys = memory_bytes(model, session.config, session.height, session.width)
    _, _, channels, height, width = session.block_shape
    work = patcher.model.memory_required([1, channels, session.config.window, height, width])

    def prepare() -> None:
        log.info("a window of %d frames takes %.0f MB of keys and values", session.config.window, keys / 1e6)
        comfy.model_management.load_models_gpu([patcher], memory_required=keys + work)

    watch = progress(patcher, total_blocks * len(session.config.steps))
    try:
        with Sampler(model, store=block_store(), watch=watch, prepare=prepare) as sampler:
            yield sampler
    finally:
        comfy.model_management.soft_empty_cache()


def progress(patcher: ModelPatcher, steps: int) -> Callable[[Pass], None]:
    """Tell ComfyUI of each denoising step, with a picture of the newest frame, and obey its interrupt."""
    bar = comfy.utils.ProgressBar(steps)
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def watch(done: Pass) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done.kind is not PassKind.DENOISE:
            return
        picture = None
        if previewer and done.clean is not None:
            picture = previewer.decode_latent_to_preview_image("JPEG", to_host(done.clean[:, -1:]))
        bar.update_absolute(bar.current + 1, steps, picture)

    return watch


def to_host(latents_BFCHW: Tensor) -> Tensor:
    """ComfyUI's order of axes, [B, C, F, H, W]."""
    return latents_BFCHW.transpose(1, 2)


def to_latent(patcher: ModelPatcher, latents_BFCHW: Tensor) -> dict[str, Tensor]:
    """A LATENT of the VAE's space for the nodes of ComfyUI."""
    return {"samples": patcher.model.process_latent_out(to_host(latents_BFCHW).float())}


def prompt_of(conditioning: list, patcher: ModelPatcher) -> Prompt:
    """The one prompt embedding of a CONDITIONING. Raises ConditioningError for several, or one of another width."""
    if len(conditioning) != 1:
        raise ConditioningError(
            f"the CONDITIONING holds {len(conditioning)} prompts, a segment has one; "
            f"connect one CLIP Text Encode and switch prompts with LongLive Switch Prompt"
        )
    embedding, settings = conditioning[0]
    ignored = sorted(name for name, value in settings.items() if value is not None and name not in HARMLESS)
    if ignored:
        log.warning("the CONDITIONING carries %s, which a session cannot honour; ignored", ", ".join(ignored))
    prompt = Prompt.of(embedding)
    width, expected = prompt.embedding.shape[-1], patcher.model.diffusion_model.text_dim
    if width != expected:
        raise ConditioningError(
            f"the CONDITIONING is {width} wide, this model reads {expected}; "
            f"encode the prompt with the umT5-xxl text encoder (CLIP loader, type wan)"
        )
    return prompt


def model_digest(patcher: ModelPatcher) -> str:
    """The identity of a MODEL: every byte of its weights, hashed once, and of the patches on them."""
    network = patcher.model.diffusion_model
    if network not in _digests:
        prefix = "diffusion_model."
        originals = {key: saved.weight for key, saved in patcher.backup.items()}
        _digests[network] = digest_of_tensors(
            {key: originals.get(prefix + key, weight) for key, weight in network.state_dict().items()}
        )
    if not patcher.patches:
        return _digests[network]
    sha = hashlib.sha256(_digests[network].encode())
    for key in sorted(patcher.patches):
        sha.update(key.encode())
        _hash_patch(sha, patcher.patches[key])
    return sha.hexdigest()


def _hash_patch(sha, patch) -> None:
    """Everything a weight patch consists of: tensors in full, strengths, kinds; adapters by what they hold."""
    if isinstance(patch, Tensor):
        sha.update(digest_of_tensors({"": patch}).encode())
    elif isinstance(patch, list | tuple):
        for part in patch:
            _hash_patch(sha, part)
    elif hasattr(patch, "weights"):
        sha.update(type(patch).__qualname__.encode())
        _hash_patch(sha, patch.weights)
    else:
        sha.update(repr(getattr(patch, "__qualname__", patch)).encode())


def block_store() -> Store:
    """Finished blocks on disk, so that an edit, an interrupt or a crash costs only what is new.

    Nothing is held in memory: ComfyUI's own cache does that, and frees it when told to.
    """
    return Store(
        Path(folder_paths.get_user_directory()) / "longlive" / "blocks", memory_bytes=0, disk_bytes=STORE_BYTES
    )


def session_path(name: str) -> Path:
    """Where the session `name` lies, in ComfyUI's output folder. Raises SessionError for a name that leaves it."""
    folder = (Path(folder_paths.get_output_directory()) / "longlive").resolve()
    path = (folder / f"{name.strip()}.safetensors").resolve() if name.isprintable() else folder
    if not name.strip() or folder not in path.parents or path.name.startswith("."):
        raise SessionError(
            f"{name!r} is no name for a session, which is kept in {folder}; use a plain name such as my_film"
        )
    return path
