"""Nodes by which a video leaves a session: as a file, as latents."""

import json

import comfy.model_management
from comfy_api.latest import InputImpl, io, ui

from ..longlive.errors import SessionError
from ..longlive.film import Film, render
from ..longlive.video import VideoWriter
from . import host, paths
from .sampling import counted, fragment_store
from .sockets import LiveSession, SessionSocket
from .unfinished import show_unfinished
from .vae import SavingDecoder


class Decode(io.ComfyNode):
    """Decode a video into a file, block by block: memory stays the same however long it is."""

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
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE (wan_2.1_vae.safetensors)."),
                io.String.Input(
                    "filename_prefix",
                    default="video/LongLive",
                    tooltip="Folder and file name in output.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The finished file; no frames are held in memory."),
                io.Image.Output(display_name="last_frame", tooltip="The last picture of the video."),
            ],
        )

    @classmethod
    def execute(cls, session: LiveSession, vae, filename_prefix: str) -> io.NodeOutput:
        video = session.session
        if not video.blocks:
            raise SessionError("the session has no frames yet; connect a LongLive Chunk Sampler or Timeline before it")
        path, subfolder = paths.film_path(filename_prefix, video.width, video.height)
        decoder = SavingDecoder(vae)
        with VideoWriter(path, metadata=cls.workflow(), growing=paths.temporary_folder()) as writer:
            try:
                last_FHWC = render(counted(video.blocks), Film(decoder, writer, fragment_store()))
            except comfy.model_management.InterruptProcessingException:
                show_unfinished(writer)
                raise
        assert last_FHWC is not None
        result = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), last_FHWC / 255, ui=ui.PreviewVideo([result]))

    @classmethod
    def workflow(cls) -> dict[str, str]:
        """The graph, kept in the file so that dropping it on ComfyUI opens the graph."""
        facts = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {key: json.dumps(value) for key, value in facts.items() if value is not None}


class SessionToLatent(io.ComfyNode):
    """All latents of a video, for nodes of ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveSessionToLatent",
            display_name="LongLive Session to Latent",
            category="LongLive",
            description="All latents of the video as one LATENT, for VAE Decode, upscalers and other nodes.",
            search_aliases=["longlive", "latents", "convert"],
            inputs=[SessionSocket.Input("session", tooltip="The video.")],
            outputs=[io.Latent.Output(display_name="latent", tooltip="All frames; decoding many at once is heavy.")],
        )

    @classmethod
    def execute(cls, session: LiveSession) -> io.NodeOutput:
        if not session.session.blocks:
            raise SessionError("the session has no frames yet; connect a LongLive Chunk Sampler or Timeline before it")
        return io.NodeOutput(host.to_latent(session.model, session.session.latents()))


NODES = [Decode, SessionToLatent]
