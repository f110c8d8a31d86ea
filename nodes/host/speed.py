"""The speed that a user chose for a session: what its MODEL and Decode use of it here.

It travels on the MODEL. A session keeps the weights of its user, whatever computes it: at the fastest speed that is a
copy of its network whose linears have 8 bits.
"""

import logging
from dataclasses import replace
from pathlib import Path
from uuid import UUID
from weakref import WeakKeyDictionary

import comfy.ldm.wan.vae
import comfy.sd
import comfy.utils
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from torch import Tensor

from ...longlive.errors import WeightsError
from ...longlive.model.eight_bit import EightBit
from ...longlive.model.speed import Means, Speed, choose_means
from ...longlive.model.vae import BASE_WIDTH
from ...longlive.weights.load_decoder import find_latent_space
from ...longlive.weights.quantise import is_linear_of_layer, quantise_linear
from .compiling import describe_compiling
from .identity import iter_loaded_weights
from .loading import check_forms
from .model import (
    SIZE_CHECK,
    apply_loras,
    check_copyable,
    describe_attention,
    get_compute_dtype,
    is_attention_chosen,
)
from .tiny_vae import LatentSpaceChoice, find_tiny_file

log = logging.getLogger(__name__)

SPEED_CHOICE = "longlive_speed"  # attachment of a MODEL
NO_TINY_VAE = "left out: a tiny VAE; put taew2_1 or lighttaew2_1 into models/vae_approx"

_copies: WeakKeyDictionary[BaseModel, tuple[UUID, ModelPatcher]] = WeakKeyDictionary()  # with 8-bit linears: the newest
_clones: WeakKeyDictionary[ModelPatcher, ModelPatcher] = WeakKeyDictionary()  # of a copy, by the MODELs they stand for


def set_speed(patcher: ModelPatcher, speed: Speed) -> ModelPatcher:
    """Return a clone of a MODEL that computes at a speed, or the MODEL itself if it does already."""
    if speed is get_speed(patcher):
        return patcher
    clone = patcher.clone()
    clone.set_attachments(SPEED_CHOICE, speed)
    return clone


def get_speed(patcher: ModelPatcher) -> Speed:
    return patcher.get_attachment(SPEED_CHOICE) or Speed.EXACT


def find_means(patcher: ModelPatcher) -> Means:
    """Find what the speed of a MODEL uses: of what its device has, what fits the MODEL."""
    means = choose_means(get_speed(patcher), patcher.load_device, get_compute_dtype(patcher))
    if means.attention and is_attention_chosen(patcher):
        reason = (
            f"8-bit attention, because ComfyUI computes with {describe_attention(patcher)}; remove the node that "
            f"overrides it, or start ComfyUI with --use-pytorch-cross-attention"
        )
        means = replace(means, attention=False, left_out=(*means.left_out, reason))
    if means.form and (reason := explain_no_copy(patcher, means.form)):
        means = replace(means, form=None, left_out=(*means.left_out, reason))
    return means


def explain_no_copy(patcher: ModelPatcher, form: EightBit) -> str:
    """Say why the linears of a MODEL cannot be rounded to 8 bits; nothing if they can."""
    try:
        check_copyable(patcher, "the MODEL", f"remove what changes it, or load it in {form} with LongLive Model Loader")
        check_forms([form])
    except WeightsError as error:
        return str(error)
    return ""


def choose_model(patcher: ModelPatcher, means: Means) -> ModelPatcher:
    """Choose the MODEL to compute with: itself or, as long as it is there, the same copy with 8-bit linears.

    A network has one such copy at a time, the one of the newest LoRAs; sessions on it share its weights.
    """
    if means.form is None:
        return patcher
    uuid, copy = _copies.get(patcher.model, (None, None))
    if copy is None or uuid != patcher.patches_uuid:
        copy = copy_in_8_bits(patcher, means.form)
        _copies[patcher.model] = patcher.patches_uuid, copy
    if patcher not in _clones or _clones[patcher].model is not copy.model:
        _clones[patcher] = clone_for(patcher, copy)
    return _clones[patcher]


def copy_in_8_bits(patcher: ModelPatcher, form: EightBit) -> ModelPatcher:
    """Copy a network: its LoRAs are merged, and the linears of its layers are rounded to 8 bits after that."""
    state: dict[str, Tensor] = {}
    for name, weight in iter_loaded_weights(patcher):
        merged = apply_loras(patcher, name, weight)
        kept = merged.to("cpu", weight.dtype) if not is_linear_of_layer(name) else merged.cpu()
        state |= quantise_linear(name, kept, form) if is_linear_of_layer(name) else {name: kept}
    copy = comfy.sd.load_diffusion_model_state_dict(state, disable_dynamic=not patcher.is_dynamic())
    copy.model.latent_format = patcher.model.latent_format
    return copy


def clone_for(patcher: ModelPatcher, copy: ModelPatcher) -> ModelPatcher:
    """Clone the copy of a network, with all that a MODEL carries beside weights and LoRAs."""
    clone = copy.clone()
    clone.model_options = create_model_options_clone(patcher.model_options)
    clone.callbacks, clone.wrappers = patcher.callbacks, patcher.wrappers
    clone.add_object_patch("manual_cast_dtype", get_compute_dtype(patcher))
    for name in (SIZE_CHECK, SPEED_CHOICE):
        clone.set_attachments(name, patcher.get_attachment(name))
    return clone


def choose_vae(patcher: ModelPatcher, vae: comfy.sd.VAE, space: str) -> tuple[comfy.sd.VAE, str]:
    """Choose the VAE of Decode, and the latents that it takes if it is tiny.

    At the fastest speed that is a tiny one in place of the full one, if its file is there.
    """
    file = find_tiny_file() if get_speed(patcher) is Speed.FASTEST and is_full_vae(vae) else None
    if file is None:
        return vae, space
    log.info("the fastest speed decodes with %s", file)
    tiny_vae = comfy.sd.VAE(comfy.utils.load_torch_file(file, safe_load=True))
    known = find_latent_space(Path(file).name)
    return tiny_vae, known if known and space == LatentSpaceChoice.AUTO else space


def is_full_vae(vae: comfy.sd.VAE) -> bool:
    """Whether a VAE is Wan2.1's of the released size, whose latents a tiny VAE takes."""
    network = vae.first_stage_model
    return isinstance(network, comfy.ldm.wan.vae.WanVAE) and network.decoder.head[0].gamma.shape[0] == BASE_WIDTH


def describe_speed(patcher: ModelPatcher) -> str:
    """Say at which speed a MODEL computes, with what attention, and why it does without the rest: a fact a line."""
    means = find_means(patcher)
    linears = f", linears in {means.form}" if means.form else ""
    lines = [f"speed: {means.speed}{linears}", f"attention: {describe_attention(patcher, means)}"]
    if compiling := describe_compiling(_clones.get(patcher, patcher)):
        lines.append(compiling)
    if means.speed is Speed.FASTEST:
        file = find_tiny_file()
        lines.append(f"LongLive Decode takes {Path(file).name} in place of a full VAE" if file else NO_TINY_VAE)
    return "\n".join([*lines, *(f"left out: {sentence}" for sentence in means.left_out)])
