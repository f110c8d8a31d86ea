"""Weights files as MODELs and VAEs: LongLive's released files, and the miniature's."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.latent_formats import Wan21
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS

from ...longlive.errors import WeightsError
from ...longlive.miniature.files import DIT, TEACHER, VAE, check_miniature_size, check_present, load_miniature
from ...longlive.model.dtypes import COMPUTE_DTYPES
from ...longlive.model.eight_bit import EightBit
from ...longlive.model.kitchen import import_kitchen
from ...longlive.weights.load import choose_dtype, load_model, merge_weights
from ...longlive.weights.lora import prepare_lora
from ...longlive.weights.quantise import DESCRIPTIONS, read_forms
from ...longlive.weights.weights_file import WeightsFile, read_weights_file
from .model import SIZE_CHECK

NO_LORA = "none"
WEIGHT_DTYPES = {
    "default": None,
    **COMPUTE_DTYPES,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    **{str(form): form for form in EightBit},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoaderChoice:
    """The inputs of LongLive Model Loader."""

    model_name: str
    lora_name: str
    lora_strength: float
    weight_dtype: str


def load_merged(choice: LoaderChoice, *, disable_dynamic: bool = False) -> tuple[ModelPatcher, str]:
    """Load LongLive's weights with its LoRA merged; also return a report. Raises WeightsError for other files."""
    weights = read_weights_file(folder_paths.get_full_path_or_raise("diffusion_models", choice.model_name))
    has_lora = choice.lora_name != NO_LORA
    lora_file = folder_paths.get_full_path_or_raise("loras", choice.lora_name) if has_lora else None
    lora = prepare_lora(lora_file, choice.lora_strength)
    chosen = WEIGHT_DTYPES[choice.weight_dtype]
    form = chosen if isinstance(chosen, EightBit) else None
    forms = {form} if form else {*read_forms(weights.tensors, weights.name).values()}
    check_forms(forms)
    dtype = chosen if isinstance(chosen, torch.dtype) else choose_narrower_dtype(weights)
    exact = dtype if dtype in COMPUTE_DTYPES.values() else None  # fp8 is left to ComfyUI, which knows how to store it
    state, report = merge_weights(weights, lora=lora, dtype=exact, eight_bit=form)
    model = comfy.sd.load_diffusion_model_state_dict(
        state, model_options={"dtype": dtype} if dtype else {}, disable_dynamic=disable_dynamic
    )
    if model is None:
        raise WeightsError(f"ComfyUI does not recognise {choice.model_name}; expected Wan2.1 text-to-video weights")
    model.cached_patcher_init = (reload_merged, (choice,))
    if forms:
        compute_in_bf16(model)
    return model, "\n".join([str(report), *describe_forms(forms, model.load_device)])


def check_forms(forms: Iterable[EightBit]) -> None:
    """Check that this ComfyUI computes with 8-bit weights of these forms.

    Raises WeightsError if it does not know one, ConfigError if its comfy-kitchen does not load.
    """
    for form in forms:
        import_kitchen()
        if DESCRIPTIONS[form]["format"] not in QUANT_ALGOS:
            raise WeightsError(
                f"this ComfyUI does not know {form} weights; update ComfyUI, or choose {EightBit.FP8_SCALED} or bf16"
            )


def compute_in_bf16(model: ModelPatcher) -> None:
    """Let a MODEL of 8-bit weights compute in bf16, as LongLive was trained, where its device can.

    ComfyUI takes fp16 for such weights. Its own node for this, ModelComputeDtype, would widen them in every pass.
    """
    if comfy.model_management.should_use_bf16(model.load_device):
        model.add_object_patch("manual_cast_dtype", torch.bfloat16)


def describe_forms(forms: Iterable[EightBit], device: torch.device) -> list[str]:
    """Say what will compute with 8-bit weights, or why that is slow; a warning in the log for what is slow."""
    slow = [*filter(None, (form.explain_slow(device) for form in sorted(forms)))]
    for sentence in slow:
        log.warning(sentence)
    return slow or [f"computed by {form.name_kernels(device)}" for form in sorted(forms)]


def find_file_name(patcher: ModelPatcher) -> str:
    """Find the name of the file that a loader made a model of; empty if it does not say."""
    match getattr(patcher, "cached_patcher_init", None):  # a function and its arguments, to load it again
        case (_, (str(path), *_), *_) | (_, (LoaderChoice(model_name=path), *_), *_):
            return Path(path).name
    return ""


def reload_merged(choice: LoaderChoice, *, disable_dynamic: bool = False) -> ModelPatcher:
    """Load the same MODEL again. ComfyUI calls this to have it without dynamic VRAM or on another device."""
    return load_merged(choice, disable_dynamic=disable_dynamic)[0]


def choose_narrower_dtype(weights: WeightsFile) -> torch.dtype | None:
    """Choose the dtype that ComfyUI would choose for these weights, if it is narrower than the file's, else None.

    Without this, ComfyUI with dynamic VRAM keeps the wide tensors in RAM and converts them at every use.
    """
    usual = choose_dtype(weights)
    chosen = comfy.model_management.unet_dtype(
        model_params=sum(tensor.numel() for tensor in weights.tensors.values()),
        supported_dtypes=list(comfy.supported_models.WAN21_T2V.supported_inference_dtypes),
        weight_dtype=usual,
    )
    return chosen if chosen.itemsize < usual.itemsize else None


class MiniatureLatents(Wan21):
    """Wan's latent statistics with preview colours of the miniature: previews are a linear map from latents.

    Fitted by least squares on videos of the world, each latent against the mean of its 8 x 8 pixels.
    """

    # fmt: off
    latent_rgb_factors: ClassVar = [
        [-0.043, -0.024, -0.017], [0.122, 0.0, 0.02], [-0.078, -0.096, -0.135], [-0.066, -0.056, -0.05],
        [0.154, 0.039, 0.015], [0.0, -0.056, -0.004], [-0.07, -0.069, -0.138], [-0.034, 0.01, -0.042],
        [0.042, -0.031, -0.069], [-0.033, -0.094, -0.105], [-0.023, -0.075, -0.011], [0.059, 0.067, 0.005],
        [-0.022, -0.09, -0.032], [-0.072, -0.14, -0.138], [0.107, 0.156, 0.041], [-0.119, -0.075, -0.072],
    ]
    # fmt: on
    latent_rgb_factors_bias: ClassVar = [0.086, 0.024, 0.177]


def load_miniature_networks() -> tuple[ModelPatcher, ModelPatcher, comfy.sd.VAE]:
    """Load the miniature's model, its teacher and its VAE. Raises WeightsError for missing or damaged files."""
    check_present(TEACHER)
    load_miniature()  # only to check the files: ComfyUI's own errors are hard to read
    load_model(TEACHER)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    return load_miniature_network(DIT), load_miniature_network(TEACHER), vae


def load_miniature_network(path: Path, *, disable_dynamic: bool = False) -> ModelPatcher:
    """Load one of the miniature's networks; ComfyUI calls this again for one without dynamic VRAM."""
    patcher = comfy.sd.load_diffusion_model(str(path), disable_dynamic=disable_dynamic)
    patcher.set_attachments(SIZE_CHECK, check_miniature_size)
    patcher.model.latent_format = MiniatureLatents()
    patcher.cached_patcher_init = (load_miniature_network, (path,))
    return patcher
