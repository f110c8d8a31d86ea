"""Linears whose weights have 8 bits: their forms, and a layer that computes with them through comfy-kitchen.

Inside ComfyUI the host's own layers take its place; both call the same functions of comfy-kitchen.
"""

from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import HALF, name_release
from .kitchen import (
    IN_PYTORCH,
    KITCHEN,
    can_multiply_fp8,
    explain_slow_fp8,
    explain_slow_int8,
    list_fast_backends,
)

GROUP = 256  # inputs that a rotation mixes: the one size that comfy-kitchen has a fast kernel for
LARGEST_INT8, LARGEST_FP8 = 127, 448  # numbers of an 8-bit weight
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # of comfy-kitchen's operators
FP8_CODE = 5  # of float8 e4m3


class EightBit(StrEnum):
    """A form of an 8-bit weight, by the name a user chooses."""

    INT8 = "int8"  # whole numbers, with one scale for each output
    INT8_ROTATED = "int8 rotated"  # the same after a rotation of the inputs (ConvRot, arXiv 2512.03673)
    FP8_SCALED = "fp8 scaled"  # float8 e4m3, with one scale

    @property
    def dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn if self is EightBit.FP8_SCALED else torch.int8

    def explain_slow(self, device: torch.device) -> str:
        """Say in a sentence why this form is no faster than bf16 on a device, and the cure; nothing if it is."""
        return explain_slow_fp8(device) if self is EightBit.FP8_SCALED else explain_slow_int8(device)

    def name_kernels(self, device: torch.device) -> str:
        """Name what computes with this form on a device, with its release: another one may round differently."""
        return " ".join([name_release(self, KITCHEN), *(list_fast_backends(device) or [IN_PYTORCH])])


class EightBitLinear(nn.Module):
    """A linear with a weight [outputs, inputs] in 8 bits, and a scale [outputs, 1] or [].

    It calls the operators that comfy-kitchen registers when it is imported, which a compiler sees through.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, linear: nn.Linear, form: EightBit, scale_shape: tuple[int, ...]) -> None:
        """Take sizes, bias and device of a linear; the weight and its scale are left empty."""
        super().__init__()
        self.form, self.bias, device = form, linear.bias, linear.weight.device
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=form.dtype, device=device))
        self.register_buffer("weight_scale", torch.empty(scale_shape, dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Compute as ComfyUI does: the inputs are rounded to 8 bits, too, where they are multiplied so."""
        if self.form is EightBit.FP8_SCALED:
            return self._compute_in_fp8(x) if x.dtype in HALF and can_multiply_fp8(x.device) else self._widen_fp8(x)
        is_rotated = self.form is EightBit.INT8_ROTATED
        return torch.ops.comfy_kitchen.int8_linear(
            x.contiguous(), self.weight, self.weight_scale, self.bias, DTYPE_CODES[x.dtype], is_rotated, GROUP
        )

    def _compute_in_fp8(self, x: Tensor) -> Tensor:
        """Multiply in float8. The inputs have the scale 1, so those beyond 448 are cut to it."""
        one = self.weight_scale.new_ones(())
        rows = torch.ops.comfy_kitchen.quantize_fp8(x.flatten(0, -2), one, FP8_CODE)
        y = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows, self.weight.t(), scale_a=one, scale_b=self.weight_scale, bias=self.bias, out_dtype=x.dtype
        )
        return y.unflatten(0, x.shape[:-1])

    def _widen_fp8(self, x: Tensor) -> Tensor:
        weight = torch.ops.comfy_kitchen.dequantize_fp8(self.weight, self.weight_scale, DTYPE_CODES[x.dtype])
        return F.linear(x, weight, self.bias)


def name_eight_bit_kernels(tree: nn.Module, device: torch.device) -> list[str]:
    """Name what computes the 8-bit linears of a tree on a device; nothing for whole weights."""
    forms = {module.form for module in tree.modules() if isinstance(module, EightBitLinear)}
    return [form.name_kernels(device) for form in sorted(forms)]
