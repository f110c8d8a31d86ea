"""Nodes that make a video longer: by one chunk, or along a timeline."""

from comfy_api.latest import io, ui

from ..longlive.errors import LongLiveError
from ..longlive.rollout.sampler import check_timeline, count_timeline_passes
from ..longlive.session.timeline import count_blending, parse_timeline, plan_ends, report_timeline
from .host.conditioning import encode_prompt
from .host.measuring import refuse_output
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
        with open_sampler(session.model, before, before.count_passes(blocks), previews=not watcher) as sampler:
            extended = sampler.extend(before, blocks)
            after = extend_session(before, extended, session.model, watcher and watcher.show)
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
        ends = plan_ends(segments, len(video.blocks))
        check_timeline(video, segments, ends)
        prompts = [encode_prompt(clip, segment.prompt, session.model) for segment in segments]
        watcher = open_watcher(session, vae)
        passes = count_timeline_passes(video, segments)
        with open_sampler(session.model, video, passes, previews=not watcher) as sampler:
            for segment, prompt, end in zip(segments, prompts, ends, strict=True):
                video = video.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
                extended = sampler.extend(video, segment.blocks, end)
                video = extend_session(video, extended, session.model, watcher and watcher.show)
            shown = finish_watching(watcher)
        begun = before.num_begun - len(before.blocks)
        blending = count_blending(segments, begun, before.config.num_in_flight)
        text = report_timeline(segments, before.config.block, before.num_frames, blending)
        if before.switches and not before.blocks:
            text += "\nnote: the prompt of the first segment replaces the session's"
        return io.NodeOutput(session.with_session(video), text, ui=ui.PreviewText(text).as_dict() | shown)


class FinishSession(io.ComfyNode):
    """End a rolling video: finish its blocks in flight, with none behind them (Rolling Forcing)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveFinish",
            display_name="LongLive Finish",
            category="LongLive",
            description="Ends a chain of samplers with Rolling Forcing: the blocks that have begun are finished. Any "
            "other video passes unchanged.",
            search_aliases=["longlive", "rolling forcing", "flush", "end video"],
            inputs=[SessionSocket.Input("session", tooltip="The video so far."), make_watch_input()],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The video with all blocks that have begun."),
                io.Latent.Output(display_name="latent", tooltip="The latents of these blocks alone, if there are any."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, vae=None) -> io.NodeOutput:
        before = session.session
        passes = before.count_passes(before.num_begun - len(before.blocks))
        watcher = open_watcher(session, vae)
        with open_sampler(session.model, before, passes, previews=not watcher) as sampler:
            after = extend_session(before, sampler.finish(before), session.model, watcher and watcher.show)
            shown = finish_watching(watcher)
        finished = after.frames(before.num_frames, after.num_frames - before.num_frames)
        latent = to_latent(session.model, finished) if finished.shape[1] else refuse_output(NOTHING_IN_FLIGHT)
        return io.NodeOutput(session.with_session(after), latent, ui=shown or None)


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

NOTHING_IN_FLIGHT = "LongLive Finish has a latent only of blocks that it finishes; this video has none in flight"

NODES = [ChunkSampler, Timeline, FinishSession]
