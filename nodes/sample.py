"""Nodes that make the video longer: by one chunk, or along a timeline."""

import logging
from dataclasses import replace

from comfy_api.latest import io, ui

from ..longlive.errors import LongLiveError
from ..longlive.sampler import check_length
from ..longlive.session import Prompt
from ..longlive.timeline import parse, report
from . import host
from .length import blocks_of, length_inputs
from .sampling import sampling
from .sockets import LiveSession, SessionSocket
from .unfinished import extended

log = logging.getLogger(__name__)


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
                *length_inputs(default=5.0, tooltip="How much longer the video gets.", shortest=0.25),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The longer video."),
                io.Latent.Output(display_name="latent", tooltip="The new chunk alone, for other nodes."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, length: float, unit: str) -> io.NodeOutput:
        before = session.session
        blocks = blocks_of(length, unit, before.config)
        with sampling(session.model, before, blocks) as sampler:
            after = extended(sampler, before, blocks, session.model)
        chunk = after.frames(before.num_frames, after.num_frames - before.num_frames)
        return io.NodeOutput(session.with_session(after), host.to_latent(session.model, chunk))


class Timeline(io.ComfyNode):
    """Make the video along a script of prompts with durations (LongLive §3.1, interactive inference)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveTimeline",
            display_name="LongLive Timeline",
            category="LongLive",
            description="Makes the video along a script: one segment a line, `8s | prompt`.",
            search_aliases=["longlive", "prompt schedule", "prompt travel", "script", "storyboard"],
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far, or a new LongLive Session."),
                io.Clip.Input("clip", tooltip="The umT5-xxl text encoder (CLIP loader, type wan)."),
                io.String.Input(
                    "script",
                    multiline=True,
                    default=SCRIPT,
                    tooltip="One segment a line: a duration (8s, 10b blocks, 30f frames), perhaps a word for how it "
                    "begins (cut, keep, renew; none means recache), a bar, the prompt. Indented lines go on with the "
                    "prompt; lines that begin with # are comments.",
                ),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The video with all segments."),
                io.String.Output(
                    display_name="report", tooltip="What each segment became, and how durations were snapped."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, script: str | None = None) -> bool | str:
        """Refuse a script that does not parse before any model is loaded. How long a block is, is not known yet."""
        if script is None:  # it is linked
            return True
        if not isinstance(script, str):  # as only an API prompt can have it
            return "the script is no text; write one segment a line"
        try:
            parse(script, block=1)
        except LongLiveError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, session: LiveSession, clip, script: str) -> io.NodeOutput:
        video = before = session.session
        segments = parse(script, block=video.config.block)
        blocks = sum(segment.blocks for segment in segments)
        check_length(video, [(segment.boundary, segment.blocks) for segment in segments])
        prompts = [encoded(clip, segment.prompt, session) for segment in segments]
        with sampling(session.model, video, blocks) as sampler:
            for segment, prompt in zip(segments, prompts, strict=True):
                begun = video.switched_to(prompt, segment.boundary)
                video = extended(sampler, begun, segment.blocks, session.model)
        text = report(segments, before.config.block, before.num_frames)
        if before.switches and not before.blocks:
            text += "\nnote: the session's own prompt gives way to the first segment's"
        return io.NodeOutput(session.with_session(video), text, ui=ui.PreviewText(text))


def encoded(clip, words: str, session: LiveSession) -> Prompt:
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(words))
    return replace(host.prompt_of(conditioning, session.model), text=words)


SCRIPT = """\
# duration | prompt; a line that begins with # is a comment
5s | A red fox walks through a snowy forest at dawn.
5s | The red fox in the snowy forest stops and looks up at falling snow.
5s | The red fox in the snowy forest runs towards the rising sun.
"""

NODES = [ChunkSampler, Timeline]
