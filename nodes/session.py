"""The nodes of a session: begin it, switch its prompt, turn it back, look at it."""

import logging

from comfy_api.latest import io, ui

from ..longlive.config import RolloutConfig
from ..longlive.session import Session
from ..longlive.timeline import Boundary
from . import host
from .identity import model_digest
from .length import blocks_of, length_inputs
from .sockets import LiveSession, OptionsSocket, SessionSocket

log = logging.getLogger(__name__)

RECACHE, KEEP, DISCARD = "recache", "keep cache", "discard cache"
KEEP_SINK, RENEW_SINK = "keep", "renew"


class NewSession(io.ComfyNode):
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
                io.Model.Input("model", tooltip="From LongLive Miniature, its Model Loader or Load Diffusion Model."),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="What the video begins with. Leave it out if a LongLive Timeline follows.",
                ),
                io.Int.Input(
                    "width",
                    default=832,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="Pixels: 832, or 64 for the miniature.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="Pixels: 480, or 64 for the miniature.",
                ),
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
        host.check_size(model, width, height)
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


class SessionInfo(io.ComfyNode):
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


NODES = [NewSession, SwitchPrompt, Rewind, SessionInfo]
