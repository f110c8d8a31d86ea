"""The pair of inputs that says how long: a number and what it counts."""

from comfy_api.latest import io

from ..longlive.config import MAX_SECONDS, RolloutConfig, seconds_to_blocks
from ..longlive.errors import ConfigError

SECONDS, BLOCKS, FRAMES = "seconds", "blocks", "frames"


def length_inputs(*, default: float, tooltip: str, shortest: float = 0.0) -> list[io.Input]:
    return [
        io.Float.Input("length", default=default, min=shortest, max=float(MAX_SECONDS), step=0.25, tooltip=tooltip),
        io.Combo.Input(
            "unit",
            options=[SECONDS, BLOCKS, FRAMES],
            default=SECONDS,
            tooltip="Seconds snap to whole blocks (0.75 s each by default). Blocks and latent frames must fit exactly.",
        ),
    ]


def blocks_of(length: float, unit: str, config: RolloutConfig) -> int:
    """Whole blocks. Raises ConfigError for a length of blocks or frames that does not fit, or a senseless one."""
    if unit == SECONDS:
        return seconds_to_blocks(length, config.block)
    step = 1 if unit == BLOCKS else config.block
    if not (length > 0 and length % step == 0):  # not a number fails too
        fitting = step * max(1, round(length / step if length > 0 else 1))
        rule = "blocks are whole" if unit == BLOCKS else f"a block has {config.block} frames"
        raise ConfigError(f"a length of {length:g} {unit} does not fit: {rule}; use {fitting}")
    return int(length) // step
