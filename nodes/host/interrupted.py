"""After an interrupt: the video so far, shown in the node that was interrupted.

Its file is temporary. The finished blocks and fragments are in the stores, where the next run finds them.
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ...longlive.errors import VideoError
from ...longlive.session.session import Session
from ...longlive.units import FPS, PIXEL_FRAMES_PER_FRAME
from ...longlive.video.pixels import colour_latents
from ...longlive.video.writer import VideoWriter
from .paths import find_temporary_folder

log = logging.getLogger(__name__)


@contextmanager
def show_on_interrupt(writer: VideoWriter) -> Iterator[None]:
    """On an interrupt, show in the node that runs what `writer` has so far."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        show_unfinished(writer)
        raise


def show_unfinished(writer: VideoWriter) -> None:
    """Show what a writer has so far in the node that runs. A disk error is only logged."""
    if not writer.num_frames:
        return
    path = find_temporary_folder() / f"longlive_unfinished_{uuid.uuid4().hex[:8]}.mp4"
    try:
        writer.save(path)
    except VideoError as error:
        log.warning("%s", error)
        return
    log.info("cancelled: %d pixel frames are shown; run again to continue from there", writer.num_frames)
    show_video(path)


def show_video(path: Path) -> None:
    """Send a file in the temporary folder to the page, as ComfyUI sends the output of a node."""
    context = get_executing_context()
    if context is None:  # called outside a node, maybe without a server
        return
    from server import PromptServer

    output = ui.PreviewVideo([ui.SavedResult(path.name, "", io.FolderType.temp)]).as_dict()
    message = {"node": context.node_id, "display_node": context.node_id, "output": output}
    server = PromptServer.instance
    server.send_sync("executed", message | {"prompt_id": context.prompt_id}, server.client_id)


def show_latents(session: Session, model: ModelPatcher) -> None:
    """Show the frames of a session as a video in the preview colours of latents, one pixel frame each."""
    factors, bias = (getattr(model.model.latent_format, f"latent_rgb_factors{end}", None) for end in ("", "_bias"))
    if not session.blocks or factors is None:
        return
    try:
        with VideoWriter(find_temporary_folder() / "longlive_latents.mp4", fps=FPS // PIXEL_FRAMES_PER_FRAME) as writer:
            for latents_BFCHW in session.blocks:
                writer.write(colour_latents(latents_BFCHW, factors, bias))
            show_unfinished(writer)
            writer.discard()
    except VideoError as error:
        log.warning("%s", error)
