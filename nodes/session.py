"""The nodes of a session: begin it, switch its prompt, rewind it, show it."""

import logging

from comfy_api.latest import io, ui

from ..longlive.config import MAX_SEED, RolloutConfig
from ..longlive.session.boundary import MAX_BLEND, Blend, Boundary, Curve
from ..longlive.session.session import Session
from ..longlive.weights.trained_rollout import find_trained_rollout, write_rollout_warning
from .host.conditioning import to_prompt
from .host.identity import hash_model
from .host.loading import find_file_name
from .host.measuring import measure_session, refuse_output
from .host.model import as_causal_model, check_size
from .host.speed import describe_speed, set_speed
from .inputs import make_length_inputs, make_options_input, make_seed_input, make_size_inputs, to_blocks
from .sockets import LiveSession, SessionOptions, SessionSocket

log = logging.getLogger(__name__)

RECACHE, KEEP, CUT, BLEND = "recache", "keep cache", "discard cache", "blend"
KEEP_SINK, RENEW_SINK = "keep", "renew"
SAME_SEED = -1


class NewSession(io.ComfyNode):
    """Begin a video (LongLive Alg. 2). Hashes the weights; no frame is computed yet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSession",
            display_name="LongLive Session",
            category="LongLive",
            description="Begins a long video: a model, a size, a seed. Samplers and switches continue it.",
            search_aliases=["longlive", "long video", "start video", "causal video"],
            inputs=[
                io.Model.Input("model", tooltip="From LongLive Model Loader, LongLive Miniature or a stock loader."),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="The first prompt. Leave it unconnected if a LongLive Timeline follows.",
                ),
                *make_size_inputs(),
                make_seed_input(
                    control_after_generate=True,
                    tooltip="Noise seed of the whole video. Set control after generate to fixed: another seed computes "
                    "every block again.",
                ),
                make_options_input(),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The video, still without frames.")],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, seed: int, conditioning=None, options=None) -> io.NodeOutput:
        check_size(model, width, height)
        options = options or SessionOptions()
        model = set_speed(model, options.speed)
        report_other_rollout(find_file_name(model), options.rollout)
        causal = as_causal_model(model)
        session = Session.start(
            to_prompt(conditioning, model) if conditioning else None,
            model=hash_model(model),
            config=options.rollout,
            height=height,
            width=width,
            seed=seed,
            dtype=causal.dtype,
            channels=causal.geometry.in_dim,
        )
        return io.NodeOutput(LiveSession(session, model))


def report_other_rollout(name: str, rollout: RolloutConfig) -> None:
    """Warn in the log if the weights of a file were trained, by its name, for another rollout."""
    trained = find_trained_rollout(name)
    if trained and (trained.kind, trained.steps) != (rollout.kind, rollout.steps):
        log.warning("%s", write_rollout_warning(name))


class SwitchPrompt(io.ComfyNode):
    """Continue the video under a new prompt (LongLive §3.1, KV recache)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSwitchPrompt",
            display_name="LongLive Switch Prompt (Recache)",
            category="LongLive",
            description="Continues the same video under a new prompt.",
            search_aliases=["longlive", "prompt switch", "kv recache", "scene change"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far."),
                io.Conditioning.Input("conditioning", tooltip="What happens next. Repeat the subject and the setting."),
                io.Combo.Input(
                    "boundary",
                    options=[RECACHE, KEEP, CUT, BLEND],
                    default=RECACHE,
                    tooltip="recache: recompute the KV cache under the new prompt; the motion continues and the new "
                    "prompt is obeyed. keep cache: the motion continues and the new prompt is obeyed slowly. discard "
                    "cache: a hard cut. blend: the prompt changes step by step, with a recache at each.",
                ),
                io.Combo.Input(
                    "sink",
                    options=[KEEP_SINK, RENEW_SINK],
                    default=KEEP_SINK,
                    tooltip="With recache. keep: the sink stays, so the look of the beginning does. renew: the oldest "
                    "frames of the window become the sink.",
                ),
                io.Int.Input(
                    "blend_blocks",
                    default=3,
                    min=1,
                    max=MAX_BLEND,
                    optional=True,
                    tooltip="With blend: over how many blocks (0.75 s each by default) the prompt changes.",
                ),
                io.Combo.Input(
                    "curve",
                    options=[curve.value for curve in Curve],
                    default=Curve.LINEAR.value,
                    optional=True,
                    advanced=True,
                    tooltip="With blend. linear: the embeddings are mixed in a straight line. spherical: each row "
                    "turns, and its norm changes evenly.",
                ),
                io.Int.Input(
                    "new_seed",
                    default=SAME_SEED,
                    min=SAME_SEED,
                    max=MAX_SEED,
                    optional=True,
                    advanced=True,
                    control_after_generate=False,
                    tooltip="Noise seed from here on; -1 keeps the one before.",
                ),
            ],
            outputs=[
                SessionSocket.Output(
                    display_name="session", tooltip="The video; its next frames follow the new prompt."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        session: LiveSession,
        conditioning,
        boundary: str,
        sink: str,
        blend_blocks: int = 3,
        curve: str = Curve.LINEAR,
        new_seed: int = SAME_SEED,
    ) -> io.NodeOutput:
        switched = session.session.switched_to(
            to_prompt(conditioning, session.model),
            to_boundary(boundary, sink),
            seed=None if new_seed == SAME_SEED else new_seed,
            blend=Blend(blend_blocks, Curve(curve)) if boundary == BLEND else None,
        )
        return io.NodeOutput(session.with_session(switched))


def to_boundary(boundary: str, sink: str) -> Boundary:
    if boundary == RECACHE:
        return Boundary.RENEW if sink == RENEW_SINK else Boundary.RECACHE
    if sink == RENEW_SINK:
        log.warning("sink is %s, which needs the boundary recache; with %s it is ignored", sink, boundary)
    return {KEEP: Boundary.KEEP, CUT: Boundary.CUT, BLEND: Boundary.RECACHE}[boundary]


class Rewind(io.ComfyNode):
    """Go back to an earlier moment, to try another ending from there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveRewind",
            display_name="LongLive Rewind",
            category="LongLive",
            description="Keeps the beginning of a video and drops the rest, prompts included.",
            search_aliases=["longlive", "undo", "trim", "retake", "branch"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                *make_length_inputs(default=5.0, tooltip="How much of the beginning to keep; 0 keeps no frames."),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The beginning. The input video is not changed.")
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, length: float, unit: str) -> io.NodeOutput:
        video = session.session
        blocks = to_blocks(length, unit, video.config) if length else 0
        return io.NodeOutput(session.with_session(video.rewound_to(blocks * video.config.block)))


class SessionInfo(io.ComfyNode):
    """Show what a session holds, in words and numbers; with a VAE also how its pictures drift."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSessionInfo",
            display_name="LongLive Session Info",
            category="LongLive",
            description="Shows how long a video is and where its prompts change; with a VAE also whether it drifts.",
            search_aliases=["longlive", "report", "frames", "duration", "drift", "contact sheet"],
            is_output_node=True,
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of LongLive Decode. With it the node measures every block, draws how far the "
                    "video drifts, and shows a frame for each second. What Decode has decoded is not decoded again.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Length, size, settings, switches and attention."),
                io.Int.Output(display_name="frames", tooltip="Latent frames."),
                io.Float.Output(display_name="seconds", tooltip="Seconds of video."),
                io.Image.Output(display_name="contact_sheet", tooltip="A frame for each second. Only with a VAE."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, vae=None) -> io.NodeOutput:
        video = session.session
        report = f"{video.describe()}\n{describe_speed(session.model)}"
        sheet = refuse_output("LongLive Session Info has a contact sheet only of a video with frames, and with a VAE")
        shown: dict = {}
        if vae and video.blocks:
            measured = measure_session(session.model, vae, video)
            report, sheet = f"{report}\n{measured.text}", measured.sheet_1HW3
            shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), "longlive_drift": [measured.drift]}
        shown |= ui.PreviewText(report).as_dict()
        return io.NodeOutput(report, video.num_frames, video.seconds, sheet, ui=shown)


NODES = [NewSession, SwitchPrompt, Rewind, SessionInfo]
