"""Nodes that keep a session in a file and bring it back."""

import logging

from comfy_api.latest import io

from ..longlive import session_file
from ..longlive.errors import SessionError
from . import paths
from .identity import model_digest, unrecognisable
from .sockets import LiveSession, SessionSocket

log = logging.getLogger(__name__)


class SaveSession(io.ComfyNode):
    """Keep a video in progress: latents, prompts, settings. Not the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSaveSession",
            display_name="LongLive Save Session",
            category="LongLive",
            description="Writes the session into output/longlive, to go on with it another day.",
            search_aliases=["longlive", "checkpoint", "store", "resume"],
            is_output_node=True,
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                io.String.Input("name", default="my_film", tooltip="The file's name. A file of that name is replaced."),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The same video."),
                io.String.Output(display_name="name", tooltip="The name, for LongLive Load Session."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, name: str) -> io.NodeOutput:
        if unknown := unrecognisable(session.model):
            log.warning("the MODEL carries %s: %s cannot be loaded again with it", " and ".join(unknown), name)
        session_file.save(session.session, paths.session_path(name))
        return io.NodeOutput(session, name)


class LoadSession(io.ComfyNode):
    """Go on with a saved video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadSession",
            display_name="LongLive Load Session",
            category="LongLive",
            description="Brings back a session saved in output/longlive, with the model it was made with.",
            search_aliases=["longlive", "resume", "continue"],
            inputs=[
                io.Model.Input("model", tooltip="The model the session was made with; another one is refused."),
                io.String.Input("name", default="my_film", tooltip="The name it was saved under."),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The video, ready to go on.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_) -> str:
        """A file that was saved anew is read anew. A linked name is not known yet; then the link decides."""
        try:
            stat = paths.session_path(name or "").stat()
        except (OSError, SessionError):
            return ""
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, model, name: str) -> io.NodeOutput:
        session = session_file.load(paths.session_path(name))
        if unknown := unrecognisable(model):
            raise SessionError(
                f"the MODEL carries {' and '.join(unknown)}, so nobody can tell whether {name} was made with it; "
                f"load sessions with a MODEL without them"
            )
        if session.model != model_digest(model):
            raise SessionError(
                f"the session {name} was made with other weights than this MODEL; load it with the files, the LoRA "
                f"strength and the weight dtype it was made with, in ComfyUI if it was made there"
            )
        return io.NodeOutput(LiveSession(session, model))


NODES = [SaveSession, LoadSession]
