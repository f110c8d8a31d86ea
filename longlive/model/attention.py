"""Attention, one function: the fastest kernel of this machine that does not quantise, for a device and dtype.

Inside ComfyUI the host's own attention takes its place.
Dimension key: B batch, T queries, S keys, N heads, H channels per head. No mask: the KV cache decides what is seen.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q [B, T, N, H], k and v [B, S, N, H] to [B, T, N, H]."""

HALF = (torch.float16, torch.bfloat16)
HOPPER = 9  # compute capability 9.x


def choose_attention(device: torch.device, dtype: torch.dtype, *, quantised: bool = False) -> tuple[Attend, str]:
    """Choose a kernel; return it and its name: FlashAttention 3 or 2 if installed and suitable, else PyTorch's own.

    SageAttention quantises, so it is used only on request. Raises ConfigError if it is requested but not available.
    """
    on_gpu = device.type == "cuda" and dtype in HALF
    if quantised:
        if on_gpu and (attend := load_sage()):
            return attend, "sage"
        raise ConfigError(
            f"SageAttention cannot run here ({device.type}, {dtype}); install sageattention and use a CUDA GPU "
            f"with bf16 or fp16, or leave it out"
        )
    for load, name in ((load_flash3, "flash3"), (load_flash2, "flash2")):
        if on_gpu and (attend := load()):
            return attend, name
    return attend_with_torch, "sdpa"


def attend_with_torch(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
    """Attend by PyTorch's scaled dot product attention: cuDNN, flash, memory-efficient or plain, as PyTorch chooses."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@cache
def load_flash3() -> Attend | None:
    """Load FlashAttention 3 (arXiv 2407.08608), for Hopper. Some builds return (output, lse), some only the output."""
    kernel = _load_optional("flash_attn_interface", "flash_attn_func")
    if kernel is None or torch.cuda.get_device_capability()[0] != HOPPER:
        return None

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        out = kernel(q_BTNH, k_BSNH, v_BSNH)
        return out[0] if isinstance(out, tuple) else out

    return attend


@cache
def load_flash2() -> Attend | None:
    """Load FlashAttention 2 (arXiv 2307.08691)."""
    return _load_optional("flash_attn", "flash_attn_func")


@cache
def load_sage() -> Attend | None:
    """Load SageAttention (arXiv 2410.02367): 8-bit, fast on consumer cards, not exact."""
    kernel = _load_optional("sageattention", "sageattn")
    if kernel is None:
        return None
    return lambda q_BTNH, k_BSNH, v_BSNH: kernel(q_BTNH, k_BSNH, v_BSNH, tensor_layout="NHD")


def _load_optional(module: str, function: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:
        log.debug("%s.%s is not used: %s", module, function, error)
        return None
