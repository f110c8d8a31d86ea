"""What an interrupt leaves: a film up to there, shown in the node that was interrupted.

It lies in ComfyUI's folder for temporary files. The work itself is in the stores, where the next queue finds it.
"""

import logging
import uuid
from pathlib import Path

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..longlive.config import FPS, PIXEL_FRAMES_PER_FRAME
from ..longlive.errors import VideoError
from ..longlive.sampler import Sampler
from ..longlive.session import Session
from ..longlive.video import VideoWriter, latent_colours
from .paths import temporary_folder

log = logging.getLogger(__name__)


def show_unfinished(writer: VideoWriter) -> None:
    """Show what a writer has so far in the node that runs. A disk that refuses is only reported."""
    if not writer.num_frames:
        return
    path = temporary_folder() / f"longlive_unfinished_{uuid.uuid4().hex[:8]}.mp4"
    try:
        writer.save(path)
    except VideoError as error:
        log.warning("%s", error)
        return
    log.info("interrupted: %d pixel frames are shown; queue again to go on from there", writer.num_frames)
    show(path)


def show(path: Path) -> None:
    """Send a file in the temporary folder to the page, as the host sends what a node made."""
    context = get_executing_context()
    if context is None:  # called by no node, and perhaps in no server
        return
    from server import PromptServer

    output = ui.PreviewVideo([ui.SavedResult(path.name, "", io.FolderType.temp)]).as_dict()
    message = {"node": context.node_id, "display_node": context.node_id, "output": output}
    server = PromptServer.instance
    server.send_sync("executed", message | {"prompt_id": context.prompt_id}, server.client_id)


def extended(sampler: Sampler, session: Session, blocks: int, model: ModelPatcher) -> Session:
    """The session after the next `blocks` blocks; an interrupt shows those that are finished, and is passed on."""
    try:
        for longer in sampler.extend(session, blocks):
            session = longer
    except comfy.model_management.InterruptProcessingException:
        show_latents(session, model)
        raise
    return session


def show_latents(session: Session, model: ModelPatcher) -> None:
    """Show the frames of a session as a film in the colours that stand for latents, one picture each."""
    factors, bias = (getattr(model.model.latent_format, f"latent_rgb_factors{end}", None) for end in ("", "_bias"))
    if not session.blocks or factors is None:
        return
    try:
        with VideoWriter(temporary_folder() / "longlive_latents.mp4", fps=FPS // PIXEL_FRAMES_PER_FRAME) as writer:
            for latents_BFCHW in session.blocks:
                writer.write(latent_colours(latents_BFCHW, factors, bias))
            show_unfinished(writer)
            writer.discard()
    except VideoError as error:
        log.warning("%s", error)
