"""Nodes that take a video out of a session: as a file, or as latents."""

import json
import logging

from comfy_api.latest import InputImpl, io, ui

from ..longlive.session.timeline import spell_blocks
from ..longlive.video.render import render_video
from ..longlive.video.writer import VideoWriter
from .host import paths
from .host.interrupted import show_on_interrupt
from .host.model import to_latent
from .host.rendering import open_renderer
from .host.sampling import show_progress
from .host.tiny_vae import LatentSpaceChoice
from .sockets import LiveSession, SessionSocket

log = logging.getLogger(__name__)


class Decode(io.ComfyNode):
    """Decode a video into a file, block by block: memory does not grow with its length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveDecode",
            display_name="LongLive Decode",
            category="LongLive",
            description="Writes the video into an mp4 in the output folder and shows it.",
            search_aliases=["longlive", "save video", "vae decode", "mp4", "export"],
            is_output_node=True,
            inputs=[
                SessionSocket.Input("session", tooltip="The video."),
                io.Vae.Input(
                    "vae",
                    tooltip="The Wan2.1 VAE (wan_2.1_vae.safetensors), or the miniature's. Or a tiny VAE (taew2_1, "
                    "lighttaew2_1): many times faster, softer pictures.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/LongLive",
                    tooltip="Folder and beginning of the file name, in the output folder.",
                ),
                io.Combo.Input(
                    "latent_space",
                    options=[choice.value for choice in LatentSpaceChoice],
                    default=LatentSpaceChoice.AUTO.value,
                    optional=True,
                    advanced=True,
                    tooltip="For a tiny VAE alone: which latents it takes. auto goes by its file: taew2_1 takes those "
                    "of the network, lighttaew2_1 those of the VAE. Change it if the colours are wrong.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The finished file; no frames are kept in memory."),
                io.Image.Output(display_name="last_frame", tooltip="The last pixel frame of the video."),
            ],
        )

    @classmethod
    def execute(
        cls, session: LiveSession, vae, filename_prefix: str, latent_space: str = LatentSpaceChoice.AUTO
    ) -> io.NodeOutput:
        session.check_has_frames()
        video = session.session
        path, subfolder = paths.choose_video_path(filename_prefix, video.width, video.height)
        with (
            VideoWriter(path, metadata=describe_workflow(cls), growing=paths.find_temporary_folder()) as writer,
            show_on_interrupt(writer),
        ):
            renderer = open_renderer(session.model, vae, video, writer, latent_space)
            last_FHWC = render_video(show_progress(video.blocks), renderer)
        assert last_FHWC is not None
        shown = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)]).as_dict()
        if left := video.num_begun - len(video.blocks):
            text = f"{spell_blocks(left)} in flight: not in this file; LongLive Finish would finish them"
            log.info("%s", text)
            shown |= ui.PreviewText(text).as_dict()
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), last_FHWC / 255, ui=shown)


class SessionToLatent(io.ComfyNode):
    """Give all latents of a video to other nodes of ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSessionToLatent",
            display_name="LongLive Session to Latent",
            category="LongLive",
            description="All latents of the video as one LATENT, for VAE Decode, upscalers and other nodes.",
            search_aliases=["longlive", "latents", "convert"],
            inputs=[SessionSocket.Input("session", tooltip="The video.")],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="All frames. Decoding many at once takes much memory.")
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession) -> io.NodeOutput:
        session.check_has_frames()
        return io.NodeOutput(to_latent(session.model, session.session.latents()))


def describe_workflow(node: type[io.ComfyNode]) -> dict[str, str]:
    """Describe the graph that runs a node as metadata of its file: dropping the file on ComfyUI opens the graph."""
    facts = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in facts.items() if value is not None}


NODES = [Decode, SessionToLatent]
