"""Nodes that begin a video, carry it from one prompt to the next, and turn it back."""

import logging

from comfy_api.latest import io, ui

from ..longlive.config import Positions, RolloutConfig
from ..longlive.errors import ConfigError
from ..longlive.session import Session
from ..longlive.timeline import Boundary
from . import host
from .identity import model_digest
from .length import blocks_of, length_inputs
from .sockets import LiveSession, OptionsSocket, SessionSocket

log = logging.getLogger(__name__)

RECACHE, KEEP, DISCARD = "recache", "keep cache", "discard cache"
KEEP_SINK, RENEW_SINK = "keep", "renew"


class Begin(io.ComfyNode):
    """Begin a video (LongLive Alg. 2). Nothing is computed yet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSession",
            display_name="LongLive Session",
            category="LongLive",
            description="Begins a long video: a model, a size, a seed. Samplers and switches make it longer.",
            search_aliases=["longlive", "long video", "start video", "causal video"],
            inputs=[
                io.Model.Input("model", tooltip="From LongLive Model Loader or Load Diffusion Model."),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="What the video begins with. Leave it out if a LongLive Timeline follows.",
                ),
                io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="Pixels; trained for 832."),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="Pixels; trained for 480."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Each block has its own noise of this seed: editing late segments leaves early ones alone.",
                ),
                OptionsSocket.Input(
                    "options", optional=True, tooltip="Window, sink, steps; the released values if left out."
                ),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The video, with no frames yet.")],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, seed: int, conditioning=None, options=None) -> io.NodeOutput:
        causal = host.causal_model(model)
        session = Session.start(
            host.prompt_of(conditioning, model) if conditioning else None,
            model=model_digest(model),
            config=options or RolloutConfig(),
            height=height,
            width=width,
            seed=seed,
            dtype=causal.dtype,
            channels=causal.geometry.in_dim,
        )
        return io.NodeOutput(LiveSession(session, model))


class SwitchPrompt(io.ComfyNode):
    """Go on under a new prompt (LongLive §3.1, KV recache)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSwitchPrompt",
            display_name="LongLive Switch Prompt (Recache)",
            category="LongLive",
            description="The same video goes on under a new prompt, without a cut.",
            search_aliases=["longlive", "prompt switch", "kv recache", "scene change"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far."),
                io.Conditioning.Input("conditioning", tooltip="What happens next. Name subject and setting again."),
                io.Combo.Input(
                    "boundary",
                    options=[RECACHE, KEEP, DISCARD],
                    default=RECACHE,
                    tooltip="Recache: what was seen is remembered as if under the new prompt, smooth and obedient. "
                    "Keep cache: smooth but slow to obey. Discard cache: a hard cut to a new scene.",
                ),
                io.Combo.Input(
                    "sink",
                    options=[KEEP_SINK, RENEW_SINK],
                    default=KEEP_SINK,
                    tooltip="With recache: keep the video's first frames as anchor, or renew it from the latest.",
                ),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The video, its new prompt waiting.")],
        )

    @classmethod
    def execute(cls, session: LiveSession, conditioning, boundary: str, sink: str) -> io.NodeOutput:
        prompt = host.prompt_of(conditioning, session.model)
        return io.NodeOutput(session.with_session(session.session.switched_to(prompt, boundary_of(boundary, sink))))


def boundary_of(boundary: str, sink: str) -> Boundary:
    if boundary == RECACHE:
        return Boundary.RENEW if sink == RENEW_SINK else Boundary.RECACHE
    if sink == RENEW_SINK:
        log.warning("sink is set to %s, which only a recache can do; with %s it is ignored", sink, boundary)
    return Boundary.KEEP if boundary == KEEP else Boundary.DISCARD


class Options(io.ComfyNode):
    """The numbers of the rollout (LongLive §3.3)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        released = RolloutConfig()
        return io.Schema(
            node_id="LongLiveOptions",
            display_name="LongLive Options",
            category="LongLive",
            description="How the video is rolled out. The defaults are what the released weights were trained for.",
            search_aliases=["longlive", "window", "frame sink", "denoising steps"],
            inputs=[
                io.Int.Input(
                    "window",
                    default=released.window,
                    min=1,
                    max=1024,
                    tooltip="Latent frames a block may look at, sink and itself included. More costs time and memory.",
                ),
                io.Int.Input(
                    "sink", default=released.sink, min=0, max=512, tooltip="First frames, remembered for ever."
                ),
                io.Int.Input(
                    "block", default=released.block, min=1, max=64, tooltip="Latent frames denoised together."
                ),
                io.String.Input(
                    "steps",
                    default=", ".join(map(str, released.steps)),
                    tooltip="Denoising steps, falling from 1000. Fewer are faster and rougher.",
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
                    tooltip="Timestep at which finished frames are remembered; trained for 0.",
                ),
                io.Combo.Input(
                    "positions",
                    options=[position.value for position in Positions],
                    default=released.positions.value,
                    tooltip="Absolute ends after 1024 latent frames (4 minutes). Unbounded never ends.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For LongLive Session.")],
        )

    @classmethod
    def execute(cls, steps: str, positions: str, **numbers) -> io.NodeOutput:
        try:
            parsed = tuple(int(step) for step in steps.replace(",", " ").split())
        except ValueError as error:
            raise ConfigError(f"steps are {steps!r}; give whole numbers such as 1000, 750, 500, 250") from error
        return io.NodeOutput(RolloutConfig(steps=parsed, positions=Positions(positions), **numbers))


class Rewind(io.ComfyNode):
    """Go back to an earlier moment, to try another ending from there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveRewind",
            display_name="LongLive Rewind",
            category="LongLive",
            description="Keeps the beginning of a video and forgets the rest, prompts included.",
            search_aliases=["longlive", "undo", "trim", "retake", "branch"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                *length_inputs(default=5.0, tooltip="How much of the beginning to keep."),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The beginning; the video you gave stays.")],
        )

    @classmethod
    def execute(cls, session: LiveSession, length: float, unit: str) -> io.NodeOutput:
        video = session.session
        blocks = blocks_of(length, unit, video.config) if length else 0
        return io.NodeOutput(session.with_session(video.rewound_to(blocks * video.config.block)))


class Info(io.ComfyNode):
    """What a session holds, in words and numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSessionInfo",
            display_name="LongLive Session Info",
            category="LongLive",
            description="Shows how long a video is and where its prompts change.",
            search_aliases=["longlive", "report", "frames", "duration"],
            is_output_node=True,
            inputs=[SessionSocket.Input("session", tooltip="The video.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="Length, size, settings and every switch."),
                io.Int.Output(display_name="frames", tooltip="Latent frames."),
                io.Float.Output(display_name="seconds", tooltip="Seconds of video."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession) -> io.NodeOutput:
        report = session.session.report()
        return io.NodeOutput(report, session.session.num_frames, session.session.seconds, ui=ui.PreviewText(report))


NODES = [Begin, SwitchPrompt, Options, Rewind, Info]
