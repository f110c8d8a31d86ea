"""The node with the settings of a rollout."""

from comfy_api.latest import io

from ..longlive.config import Positions, RolloutConfig
from ..longlive.errors import ConfigError
from .sockets import OptionsSocket


class Options(io.ComfyNode):
    """Set the numbers of the rollout (LongLive §3.3)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        released = RolloutConfig()
        return io.Schema(
            node_id="LongLiveOptions",
            display_name="LongLive Options",
            category="LongLive",
            description="Settings of the rollout. The defaults are those the released weights were trained with.",
            search_aliases=["longlive", "window", "frame sink", "denoising steps"],
            inputs=[
                io.Int.Input(
                    "window",
                    default=released.window,
                    min=1,
                    max=1024,
                    tooltip="Latent frames a block may attend, sink and block included. More cost time and memory.",
                ),
                io.Int.Input(
                    "sink",
                    default=released.sink,
                    min=0,
                    max=512,
                    tooltip="First frames of the video, kept in the window permanently.",
                ),
                io.Int.Input(
                    "block", default=released.block, min=1, max=64, tooltip="Latent frames denoised together."
                ),
                io.String.Input(
                    "steps",
                    default=", ".join(map(str, released.steps)),
                    tooltip="Denoising timesteps, falling from 1000. Fewer are faster and rougher.",
                ),
                io.Float.Input(
                    "shift",
                    default=released.shift,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="Timestep shift; trained for 5.",
                ),
                io.Float.Input(
                    "context_noise",
                    default=released.context_noise,
                    min=0.0,
                    max=999.0,
                    step=1.0,
                    tooltip="Timestep of the clean pass over finished frames; trained for 0.",
                ),
                io.Combo.Input(
                    "positions",
                    options=[position.value for position in Positions],
                    default=released.positions.value,
                    tooltip="Absolute: up to 1024 latent frames (4 minutes). Unbounded: any length.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For LongLive Session.")],
        )

    @classmethod
    def execute(cls, steps: str, positions: str, **numbers) -> io.NodeOutput:
        try:
            timesteps = tuple(int(step) for step in steps.replace(",", " ").split())
        except ValueError as error:
            raise ConfigError(f"steps are {steps!r}; give whole numbers such as 1000, 750, 500, 250") from error
        return io.NodeOutput(RolloutConfig(steps=timesteps, positions=Positions(positions), **numbers))


NODES = [Options]
