"""The linears of a Wan network's layers in 8 bits, under the names and in the form that ComfyUI's own loader reads.

A linear L has L.weight in int8 or float8, L.weight_scale in float32, and L.comfy_quant, which is JSON as bytes. All
other tensors stay as they are.
"""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import WeightsError, shorten
from ..model.eight_bit import GROUP, LARGEST_FP8, LARGEST_INT8, EightBit, EightBitLinear
from ..model.wan import Geometry, WanModel
from ..untrusted import parse_json

WEIGHT, SCALE, FORM = ".weight", ".weight_scale", ".comfy_quant"  # suffixes of a linear's tensors
DESCRIPTIONS = {  # the JSON of a form
    EightBit.INT8: {"format": "int8_tensorwise"},
    EightBit.INT8_ROTATED: {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP},
    EightBit.FP8_SCALED: {"format": "float8_e4m3fn"},
}
LINEAR = re.compile(r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.0|ffn\.2)\.weight")  # ten in a layer
MAX_DESCRIPTION = 1000  # bytes of the JSON
SMALLEST_SCALE = 1e-30  # of a weight that is zero
HADAMARD = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)


def read_forms(tensors: Mapping[str, Tensor], source: str) -> dict[str, EightBit]:
    """Read which linears have 8 bits, by the names of their modules, and in what form; none of whole weights.

    Raises WeightsError for a form that `quantise_linear` does not make.
    """
    described = {name.removesuffix(FORM): tensor for name, tensor in tensors.items() if name.endswith(FORM)}
    return {module: read_form(module, tensor, source) for module, tensor in described.items()}


def read_form(module: str, described: Tensor, source: str) -> EightBit:
    is_text = described.dtype is torch.uint8 and described.numel() <= MAX_DESCRIPTION
    text = bytes(described.flatten().tolist()) if is_text else b""
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    form = next((form for form, description in DESCRIPTIONS.items() if description == content), None)
    if form is None:
        raise WeightsError(
            f"{source} has {shorten(module)} in the form {shorten(text.decode(errors='replace'))}, expected one that "
            f"`longlive quantize` writes; load it with ComfyUI's own diffusion model loader, or use bf16 weights"
        )
    return form


def make_empty_model(geometry: Geometry, tensors: Mapping[str, Tensor], source: str) -> WanModel:
    """Make a tree on the meta device, with 8-bit linears where the tensors have them.

    Raises WeightsError for a linear that the tree lacks.
    """
    model = WanModel(geometry, device="meta")
    modules = dict(model.named_modules())
    for name, form in read_forms(tensors, source).items():
        linear, scale = modules.get(name), tensors.get(name + SCALE)
        if not isinstance(linear, nn.Linear) or scale is None:
            raise WeightsError(f"{source} describes {shorten(name)}, which is no linear with a scale; make it again")
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, EightBitLinear(linear, form, (linear.out_features, 1)[: scale.dim()]))
    return model


def is_linear_of_layer(name: str) -> bool:
    """Whether a tensor of this released name is the weight of a linear that may have 8 bits."""
    return LINEAR.fullmatch(name) is not None


def quantise_linear(name: str, weight: Tensor, form: EightBit) -> dict[str, Tensor]:
    """Round the weight [outputs, inputs] of that name to 8 bits; return the tensors that a file has for it.

    The numbers are those of comfy-kitchen's own rounding, which adds nothing random. Raises WeightsError if inputs
    cannot be rotated in groups.
    """
    module, weight = name.removesuffix(WEIGHT), weight.float()
    if form is EightBit.FP8_SCALED:
        scale = (weight.abs().amax() / LARGEST_FP8).clamp(min=SMALLEST_SCALE)
        rounded = (weight * (1 / scale)).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    else:
        if form is EightBit.INT8_ROTATED:
            weight = rotate_weight(name, weight)
        scale = (weight.abs().amax(1, keepdim=True) / LARGEST_INT8).clamp(min=SMALLEST_SCALE)
        rounded = (weight / scale).round().to(torch.int8)
    described = torch.tensor(list(json.dumps(DESCRIPTIONS[form]).encode()), dtype=torch.uint8)
    return {module + WEIGHT: rounded, module + SCALE: scale, module + FORM: described}


def rotate_weight(name: str, weight: Tensor) -> Tensor:
    """Rotate the inputs of a weight [outputs, inputs] in groups, by a regular Hadamard matrix (arXiv 2512.03673 §3).

    That spreads a large number over its group, so that a scale fits all of them better.
    """
    outputs, inputs = weight.shape
    if inputs % GROUP:
        raise WeightsError(
            f"{name} has {inputs} inputs, but a rotation needs a multiple of {GROUP}; choose {EightBit.INT8}"
        )
    return (weight.view(outputs, -1, GROUP) @ make_hadamard().to(weight.device).T).view(outputs, inputs)


def make_hadamard() -> Tensor:
    """Make the orthogonal matrix [GROUP, GROUP] of a rotation."""
    matrix = HADAMARD
    while len(matrix) < GROUP:
        matrix = torch.kron(matrix, HADAMARD)
    return matrix / GROUP**0.5
