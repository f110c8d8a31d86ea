"""Inputs that several nodes share: a text encoder, a length and its unit, a size in pixels, a seed, options."""

from enum import StrEnum

from comfy_api.latest import io

from ..longlive.config import MAX_SEED, RolloutConfig
from ..longlive.errors import ConfigError
from ..longlive.units import MAX_SECONDS, SIZE_STEP, convert_seconds_to_blocks
from .sockets import OptionsSocket

MAX_INPUT_SIZE = 4096  # pixels


class LengthUnit(StrEnum):
    """The unit of a length that a user sets."""

    SECONDS = "seconds"
    BLOCKS = "blocks"
    FRAMES = "frames"


def make_clip_input() -> io.Input:
    return io.Clip.Input(
        "clip", tooltip="The model's text encoder: umT5-xxl (CLIP loader, type wan), or the miniature's."
    )


def make_length_inputs(*, default: float, tooltip: str, shortest: float = 0.0) -> list[io.Input]:
    return [
        io.Float.Input("length", default=default, min=shortest, max=float(MAX_SECONDS), step=0.25, tooltip=tooltip),
        io.Combo.Input(
            "unit",
            options=[unit.value for unit in LengthUnit],
            default=LengthUnit.SECONDS.value,
            tooltip="Seconds are rounded to whole blocks (0.75 s each by default). Give blocks as whole numbers and "
            "latent frames as a multiple of the block (3 by default).",
        ),
    ]


def make_size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            name,
            default=default,
            min=SIZE_STEP,
            max=MAX_INPUT_SIZE,
            step=SIZE_STEP,
            tooltip=f"{name.capitalize()} in pixels: {default} for LongLive, 64 for the miniature.",
        )
        for name, default in (("width", 832), ("height", 480))
    ]


def make_seed_input(*, control_after_generate: bool, tooltip: str) -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=MAX_SEED, control_after_generate=control_after_generate, tooltip=tooltip
    )


def make_options_input() -> io.Input:
    return OptionsSocket.Input(
        "options",
        optional=True,
        tooltip="From LongLive Options: window, sink, steps, positions. Unconnected, the released values apply.",
    )


def to_blocks(length: float, unit: str, config: RolloutConfig) -> int:
    """Convert a length to whole blocks. Raises ConfigError for blocks or frames that do not fit."""
    if unit == LengthUnit.SECONDS:
        return convert_seconds_to_blocks(length, config.block)
    step = 1 if unit == LengthUnit.BLOCKS else config.block
    if not (length > 0 and length % step == 0):  # false for NaN, too
        fitting = step * max(1, round(length / step if length > 0 else 1))
        rule = "blocks are whole" if unit == LengthUnit.BLOCKS else f"a block has {config.block} frames"
        raise ConfigError(f"a length of {length:g} {unit} does not fit: {rule}; use {fitting}")
    return int(length) // step
