"""Nodes that make a video longer: by one chunk, or along a timeline."""

from comfy_api.latest import io, ui

from ..longlive.errors import LongLiveError
from ..longlive.rollout.sampler import check_timeline
from ..longlive.session.timeline import parse_timeline, report_timeline
from .host.conditioning import encode_prompt
from .host.model import to_latent
from .host.sampling import extend_session, open_sampler
from .host.watching import Watcher
from .inputs import make_clip_input, make_length_inputs, to_blocks
from .sockets import LiveSession, SessionSocket


class ChunkSampler(io.ComfyNode):
    """Make the video longer by a chunk, block by block (LongLive Alg. 2)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveChunkSampler",
            display_name="LongLive Chunk Sampler",
            category="LongLive",
            description="Makes the video longer under its current prompt.",
            search_aliases=["longlive", "extend video", "sampler", "continue"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far."),
                *make_length_inputs(default=5.0, tooltip="How much longer the video becomes.", shortest=0.25),
                make_watch_input(),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The longer video."),
                io.Latent.Output(display_name="latent", tooltip="The latents of the new chunk alone, for other nodes."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, length: float, unit: str, vae=None) -> io.NodeOutput:
        before = session.session
        blocks = to_blocks(length, unit, before.config)
        watcher = open_watcher(session, vae)
        with open_sampler(session.model, before, blocks, previews=not watcher) as sampler:
            after = extend_session(sampler, before, blocks, session.model, watcher and watcher.show)
            shown = finish_watching(watcher)
        chunk = after.frames(before.num_frames, after.num_frames - before.num_frames)
        return io.NodeOutput(session.with_session(after), to_latent(session.model, chunk), ui=shown or None)


class Timeline(io.ComfyNode):
    """Make the video along a script of prompts with durations (LongLive §3.1, interactive inference)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveTimeline",
            display_name="LongLive Timeline",
            category="LongLive",
            description="Makes the video along a script, one segment per line: `8s | prompt`.",
            search_aliases=["longlive", "prompt schedule", "prompt travel", "script", "storyboard"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far, or a new LongLive Session."),
                make_clip_input(),
                io.String.Input(
                    "script",
                    multiline=True,
                    default=DEFAULT_SCRIPT,
                    tooltip="One segment per line: a duration (8s, 10b for blocks, 30f for latent frames), optionally "
                    "a word for the switch (renew, keep, cut or blend 3b; recache without one) and seed 7 for other "
                    "noise, a |, the prompt. An indented line continues the prompt; a line that begins with # is a "
                    "comment.",
                ),
                make_watch_input(),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The video with all segments."),
                io.String.Output(
                    display_name="report", tooltip="The length of each segment, after rounding to blocks."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, script: str | None = None) -> bool | str:
        """Refuse a script that does not parse, before any model is loaded.

        Whether frames fill whole blocks is checked later: a block's length is not known yet.
        """
        return True if script is None else check_script(script)  # None: it is linked

    @classmethod
    def execute(cls, session: LiveSession, clip, script: str, vae=None) -> io.NodeOutput:
        video = before = session.session
        segments = parse_timeline(script, block=video.config.block)
        blocks = sum(segment.blocks for segment in segments)
        check_timeline(video, segments)
        prompts = [encode_prompt(clip, segment.prompt, session.model) for segment in segments]
        watcher = open_watcher(session, vae)
        with open_sampler(session.model, video, blocks, previews=not watcher) as sampler:
            for segment, prompt in zip(segments, prompts, strict=True):
                switched = video.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
                video = extend_session(sampler, switched, segment.blocks, session.model, watcher and watcher.show)
            shown = finish_watching(watcher)
        text = report_timeline(segments, before.config.block, before.num_frames)
        if before.switches and not before.blocks:
            text += "\nnote: the prompt of the first segment replaces the session's"
        return io.NodeOutput(session.with_session(video), text, ui=ui.PreviewText(text).as_dict() | shown)


def make_watch_input() -> io.Input:
    return io.Vae.Input(
        "vae",
        optional=True,
        tooltip="Connect a VAE to watch the video in the node while it is made. LongLive Decode then decodes nothing "
        "again. Without one, a preview shows the newest frame.",
    )


def open_watcher(session: LiveSession, vae) -> Watcher | None:
    """Open a watcher if there is a VAE to watch with. Raises WeightsError if it is not the session's."""
    return Watcher(session.model, vae, session.session) if vae else None


def finish_watching(watcher: Watcher | None) -> dict[str, list[str]]:
    """Finish the film, if there is one; return what the page is told of the node."""
    if watcher is None:
        return {}
    watcher.finish()
    return watcher.output


def check_script(script: object) -> bool | str:
    """Return True for a script that parses, else what is wrong with it."""
    if not isinstance(script, str):  # as only an API prompt can have it
        return "the script is not text; write one segment per line"
    try:
        parse_timeline(script, block=1)
    except LongLiveError as error:
        return str(error)
    return True


DEFAULT_SCRIPT = """\
# duration | prompt; a line that begins with # is a comment
5s | A red fox walks through a snowy forest at dawn.
5s | The red fox in the snowy forest stops and looks up at falling snow.
5s | The red fox in the snowy forest runs towards the rising sun.
"""

NODES = [ChunkSampler, Timeline]
