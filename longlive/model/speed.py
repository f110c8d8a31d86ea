"""The one choice between exactness and speed, and what a device has for it."""

from dataclasses import dataclass
from enum import StrEnum

import torch

from ..errors import ConfigError
from .attention import choose_quantised_attention
from .eight_bit import EightBit
from .kitchen import find_int8_obstacle


class Speed(StrEnum):
    """How a video is computed. A block of another speed has another key."""

    EXACT = "exact"  # that of the recorded runs, but for rounding in kernels of ours on GPUs
    FAST = "fast"  # the same weights; operations are joined and attention computes in 8 bits
    FASTEST = "fastest"  # the linears of the layers and their inputs in 8 bits, too, and a tiny VAE


@dataclass(frozen=True)
class Means:
    """What a speed uses on a device, and why it does without the rest."""

    speed: Speed = Speed.EXACT
    attention: bool = False  # in 8 bits
    form: EightBit | None = None  # of the linears
    left_out: tuple[str, ...] = ()  # sentences

    @property
    def joined(self) -> bool:
        """Whether operations may be joined, so that they round less often."""
        return self.speed is not Speed.EXACT


def choose_means(speed: Speed, device: torch.device, dtype: torch.dtype) -> Means:
    """Choose what a speed uses: nothing that is not here, and nothing that is slower here."""
    no_attention = explain_no_attention(device, dtype) if speed is not Speed.EXACT else ""
    no_linears = explain_no_int8(device) if speed is Speed.FASTEST else ""
    return Means(
        speed,
        attention=speed is not Speed.EXACT and not no_attention,
        form=EightBit.INT8 if speed is Speed.FASTEST and not no_linears else None,
        left_out=tuple(filter(None, (no_attention, no_linears))),
    )


def explain_no_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Say why a device has no attention in 8 bits; nothing if it has."""
    try:
        choose_quantised_attention(device, dtype)
    except ConfigError as error:
        return str(error)
    return ""


def explain_no_int8(device: torch.device) -> str:
    """Say why a device has no INT8 linears that are faster than bf16; nothing if it has."""
    try:
        obstacle = find_int8_obstacle(device)
    except ConfigError as error:  # comfy-kitchen is missing
        return f"INT8 linears: {error}"
    return obstacle and (
        f"INT8 linears, because comfy-kitchen has no kernels for them here ({obstacle}); they need an RTX 20 or newer "
        f"and a PyTorch for CUDA 13 (cu130)"
    )
