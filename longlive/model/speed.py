"""The one choice between exactness and speed, and what a device has for it."""

from dataclasses import dataclass
from enum import StrEnum

import torch

from ..errors import ConfigError
from .attention import choose_quantised_attention
from .eight_bit import EightBit


class Speed(StrEnum):
    """How a video is computed. A block of another speed has another key."""

    EXACT = "exact"  # the arithmetic of the recorded runs
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
    no_form = explain_no_form(EightBit.INT8, device) if speed is Speed.FASTEST else ""
    return Means(
        speed,
        attention=speed is not Speed.EXACT and not no_attention,
        form=EightBit.INT8 if speed is Speed.FASTEST and not no_form else None,
        left_out=tuple(filter(None, (no_attention, no_form))),
    )


def explain_no_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Say why a device has no attention in 8 bits; nothing if it has."""
    try:
        choose_quantised_attention(device, dtype)
    except ConfigError as error:
        return str(error)
    return ""


def explain_no_form(form: EightBit, device: torch.device) -> str:
    """Say why weights of a form are no faster on a device; nothing if they are."""
    try:
        return form.explain_slow(device)
    except ConfigError as error:  # comfy-kitchen is missing
        return str(error)
