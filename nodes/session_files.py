"""Nodes that save a session in a file and load it."""

import logging

from comfy_api.latest import io

from ..longlive.errors import SessionError
from ..longlive.session.session_file import load_session, save_session
from .host import paths
from .host.identity import hash_model, list_unrecognisable
from .sockets import LiveSession, SessionSocket

log = logging.getLogger(__name__)

DEFAULT_NAME = "my_film"  # of a session


class SaveSession(io.ComfyNode):
    """Save a video in progress: latents, prompts, settings. Not the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSaveSession",
            display_name="LongLive Save Session",
            category="LongLive",
            description="Saves the session in output/longlive, so that you can continue it later.",
            search_aliases=["longlive", "checkpoint", "store", "resume"],
            is_output_node=True,
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                io.String.Input(
                    "name",
                    default=DEFAULT_NAME,
                    tooltip="File in output/longlive; a session of this name is replaced.",
                ),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The same video."),
                io.String.Output(display_name="name", tooltip="The name, for LongLive Load Session."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, name: str) -> io.NodeOutput:
        if unknown := list_unrecognisable(session.model):
            log.warning(
                "%s will not load again: the MODEL carries %s, which cannot be recognised later; "
                "remove the node that adds this and make the video again",
                name,
                " and ".join(unknown),
            )
        save_session(session.session, paths.find_session_path(name))
        return io.NodeOutput(session, name)


class LoadSession(io.ComfyNode):
    """Load a saved video, to continue it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadSession",
            display_name="LongLive Load Session",
            category="LongLive",
            description="Loads a session saved in output/longlive. It needs the model it was made with.",
            search_aliases=["longlive", "resume", "continue"],
            inputs=[
                io.Model.Input("model", tooltip="The model the session was made with; other models are refused."),
                io.String.Input("name", default=DEFAULT_NAME, tooltip="The name it was saved under."),
            ],
            outputs=[SessionSocket.Output(display_name="session", tooltip="The video, ready to continue.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_) -> str:
        """Let ComfyUI read a file again when it changes. A linked name is not known yet: then only the link counts."""
        try:
            return paths.fingerprint_file(paths.find_session_path(name or ""))
        except (OSError, SessionError):
            return ""

    @classmethod
    def execute(cls, model, name: str) -> io.NodeOutput:
        session = load_session(paths.find_session_path(name))
        if unknown := list_unrecognisable(model):
            raise SessionError(
                f"the MODEL carries {' and '.join(unknown)}, so it is unknown whether {name} was made with it; "
                f"remove the node that adds this"
            )
        if session.model != hash_model(model):
            raise SessionError(
                f"the session {name} was made with other weights than this MODEL; connect the same file, LoRA, "
                f"strength and weight_dtype through the same loader, or continue it with `longlive render` if it was "
                f"made there"
            )
        return io.NodeOutput(LiveSession(session, model))


NODES = [SaveSession, LoadSession]
