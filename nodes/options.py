"""The node with the settings of a rollout."""

from comfy_api.latest import io

from ..longlive.config import Positions, RolloutConfig
from ..longlive.errors import ConfigError
from ..longlive.model.speed import Speed
from .sockets import OptionsSocket, SessionOptions


class Options(io.ComfyNode):
    """Set the numbers of the rollout (LongLive §3.3)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        released = RolloutConfig()
        return io.Schema(
            node_id="LongLiveOptions",
            display_name="LongLive Options",
            category="LongLive",
            description="How a video is made, block by block. The released weights were trained with the defaults.",
            search_aliases=["longlive", "window", "frame sink", "denoising steps"],
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
                    default=", ".join(map(str, released.steps)),
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
                    "length; choose it for a video of more than 4 minutes.",
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
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For LongLive Session.")],
        )

    @classmethod
    def execute(cls, steps: str, positions: str, speed: str = Speed.EXACT, **numbers) -> io.NodeOutput:
        try:
            timesteps = tuple(int(step) for step in steps.replace(",", " ").split())
        except ValueError as error:
            raise ConfigError(f"steps are {steps!r}; give whole numbers such as 1000, 750, 500, 250") from error
        rollout = RolloutConfig(steps=timesteps, positions=Positions(positions), **numbers)
        return io.NodeOutput(SessionOptions(rollout, Speed(speed)))


NODES = [Options]
