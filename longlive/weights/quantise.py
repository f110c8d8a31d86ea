"""The linears of a Wan network's layers in 8 bits, under the names and in the form that ComfyUI's own loader reads.

A linear L has L.weight in int8 or float8, L.weight_scale in float32, and L.comfy_quant, which is JSON as bytes. All
other tensors stay as they are.
"""

import json
import re

import torch
from torch import Tensor

from ..errors import WeightsError
from ..model.eight_bit import GROUP, LARGEST_FP8, LARGEST_INT8, EightBit

WEIGHT, SCALE, FORM = ".weight", ".weight_scale", ".comfy_quant"  # suffixes of a linear's tensors
DESCRIPTIONS = {  # the JSON of a form
    EightBit.INT8: {"format": "int8_tensorwise"},
    EightBit.INT8_ROTATED: {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP},
    EightBit.FP8_SCALED: {"format": "float8_e4m3fn"},
}
LINEAR = re.compile(r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.0|ffn\.2)\.weight")  # ten in a layer
SMALLEST_SCALE = 1e-30  # of a weight that is zero
HADAMARD = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)


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
