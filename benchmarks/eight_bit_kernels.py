"""Kernels of 8 bits for the meta device, where the counter sees them; the packages they stand for are not needed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from work_counter import KERNELS, Kernel, Kind, count_attention, count_product

from longlive.model import eight_bit
from longlive.model.kitchen import KITCHEN


@torch.library.custom_op("eight_bit_kernels::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply x [..., K] by an INT8 weight [N, K]."""
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("eight_bit_kernels::round_to_fp8", mutates_args=())
def round_to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Round to float8 e4m3."""
    return x.to(torch.float8_e4m3fn)


@torch.library.custom_op("eight_bit_kernels::attend", mutates_args=())
def attend_in_8_bit(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
    """Attend as SageAttention 2 does."""
    return torch.empty_like(q_BTNH)


int8_linear.register_fake(lambda x, weight, weight_scale, bias: x.new_empty(*x.shape[:-1], weight.shape[0]))
round_to_fp8.register_fake(lambda x, scale: torch.empty_like(x, dtype=torch.float8_e4m3fn))
attend_in_8_bit.register_fake(lambda q, k, v: torch.empty_like(q))

KERNELS["eight_bit_kernels::int8_linear"] = Kernel(
    Kind.GEMM_8_BIT, lambda args, _: count_product(args[0], args[1].T), rounds=1
)
KERNELS["eight_bit_kernels::attend"] = Kernel(
    Kind.ATTENTION_8_BIT, lambda args, _: count_attention(*args, axis=1), rounds=3
)


@contextmanager
def use_counted_kitchen() -> Iterator[None]:
    """Let 8-bit linears compute with the kernels above instead of comfy-kitchen's.

    A rotation counts nothing: comfy-kitchen 0.2.26 rotates and rounds the inputs of our linears in one kernel.
    """
    operators = SimpleNamespace(
        int8_linear=lambda x, weight, scale, bias, *_: int8_linear(x, weight, scale, bias),
        quantize_fp8=lambda x, scale, _: round_to_fp8(x, scale),
    )
    installed = sys.modules.get(KITCHEN)
    sys.modules[KITCHEN] = ModuleType(KITCHEN)
    try:
        with (
            patch.object(torch.ops, KITCHEN, operators, create=True),
            patch.object(eight_bit, "can_multiply_fp8", lambda device: True),
        ):
            yield
    finally:
        del sys.modules[KITCHEN]
        if installed:
            sys.modules[KITCHEN] = installed
