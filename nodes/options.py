"""The node with the settings of a rollout."""

from comfy_api.latest import io

from ..longlive.config import Positions, RolloutConfig
from ..longlive.errors import ConfigError
from ..longlive.model.speed import Speed
from .sockets import OptionsSocket, SessionOptions

LONGLIVE, ROLLING_FORCING = "LongLive", "Rolling Forcing"
RELEASED_NUMBERS = {LONGLIVE: RolloutConfig(), ROLLING_FORCING: RolloutConfig.roll()}


class Options(io.ComfyNode):
    """Set the kind and the numbers of the rollout (LongLive §3.3; Rolling Forcing, arXiv 2509.25161)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        released = RELEASED_NUMBERS[LONGLIVE]
        return io.Schema(
            node_id="LongLiveOptions",
            display_name="LongLive Options",
            category="LongLive",
            description="How a video is made, block by block. The released weights were trained with the defaults.",
            search_aliases=["longlive", "window", "frame sink", "denoising steps", "rolling forcing"],
            inputs=[
                io.Int.Input(
                    "window",
                    default=released.window,
                    min=1,
                    max=1024,
                    tooltip="Latent frames that a block sees, the sink and the block included. A larger window takes "
                    "more time and memory.",
                ),
                io.Int.Input(
                    "sink",
                    default=released.sink,
                    min=0,
                    max=512,
                    tooltip="First latent frames of the video, which stay in the window; 0 for none. A cut begins a "
                    "new sink, renew takes one from the window.",
                ),
                io.Int.Input(
                    "block", default=released.block, min=1, max=64, tooltip="Latent frames denoised together."
                ),
                io.String.Input(
                    "steps",
                    default=write_steps(released),
                    tooltip="Denoising steps: falling whole numbers from 1000 to 1. Fewer are faster and rougher.",
                ),
                io.Float.Input(
                    "shift",
                    default=released.shift,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="Moves the denoising steps towards more noise. Leave it at 5, which the model was trained "
                    "with.",
                ),
                io.Float.Input(
                    "context_noise",
                    default=released.context_noise,
                    min=0.0,
                    max=999.0,
                    step=1.0,
                    tooltip="Timestep given with finished frames when the model reads them again. Leave it at 0, which "
                    "the model was trained with.",
                ),
                io.Combo.Input(
                    "positions",
                    options=[position.value for position in Positions],
                    default=released.positions.value,
                    tooltip="absolute: as released, up to 1024 latent frames (4 minutes 15 seconds). unbounded: any "
                    "length; choose it for a video of more than 4 minutes. Rolling Forcing is always unbounded.",
                ),
                io.Combo.Input(
                    "speed",
                    options=[speed.value for speed in Speed],
                    default=Speed.EXACT.value,
                    optional=True,
                    tooltip="exact: the arithmetic of the released code, but for rounding. fast: attention in 8 bits, "
                    "the same weights. fastest: the linears in 8 bits, too, and Decode takes a tiny VAE from "
                    "models/vae_approx. What is not here is left out; LongLive Session Info says what.",
                ),
                io.Combo.Input(
                    "kind",
                    options=[*RELEASED_NUMBERS],
                    default=LONGLIVE,
                    optional=True,
                    tooltip="What the weights were trained for. LongLive: block by block. Rolling Forcing: several "
                    "blocks at once, each a step behind the one before, for its own weights (rolling_forcing_dmd.pt). "
                    "A change sets the other inputs to the released numbers.",
                    extra_dict={
                        "longlive_released": {kind: list_inputs(RELEASED_NUMBERS[kind]) for kind in RELEASED_NUMBERS}
                    },
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For LongLive Session.")],
        )

    @classmethod
    def execute(
        cls, steps: str, positions: str, speed: str = Speed.EXACT, kind: str = LONGLIVE, **numbers
    ) -> io.NodeOutput:
        try:
            timesteps = tuple(int(step) for step in steps.replace(",", " ").split())
        except ValueError as error:
            raise ConfigError(f"steps are {steps!r}; give whole numbers such as 1000, 750, 500, 250") from error
        if kind == ROLLING_FORCING:
            rollout = roll(timesteps, **numbers)
        else:
            rollout = RolloutConfig(steps=timesteps, positions=Positions(positions), **numbers)
        return io.NodeOutput(SessionOptions(rollout, Speed(speed)))


def roll(steps: tuple[int, ...], **numbers) -> RolloutConfig:
    """Make the numbers of a rolling video. Raises ConfigError, with the released ones."""
    try:
        return RolloutConfig.roll(steps=steps, **numbers)
    except ConfigError as error:
        released = RELEASED_NUMBERS[ROLLING_FORCING]
        raise ConfigError(
            f"{error}; {ROLLING_FORCING} is released with window {released.window}, sink {released.sink}, block "
            f"{released.block} and steps {write_steps(released)}"
        ) from error


def list_inputs(rollout: RolloutConfig) -> dict[str, object]:
    """List the inputs that differ between the kinds, as widgets hold them."""
    numbers: dict[str, object] = {name: getattr(rollout, name) for name in ("window", "sink", "block")}
    return numbers | {"steps": write_steps(rollout), "positions": rollout.positions.value}


def write_steps(rollout: RolloutConfig) -> str:
    return ", ".join(map(str, rollout.steps))


NODES = [Options]
