"""The node that loads the trained miniature, which lies in the pack itself: something that runs with no download."""

import comfy.sd
import comfy.utils
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..longlive.miniature.files import DIT, VAE, check_size, load_miniature
from ..longlive.miniature.grammar import complaints, parse
from ..longlive.miniature.text import MiniatureText
from .host import SIZE_CHECK


class Miniature(io.ComfyNode):
    """Load the miniature as ComfyUI loads any Wan2.1 model: its network, its VAE, its words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveMiniature",
            display_name="LongLive Miniature",
            category="LongLive",
            description="A small trained model inside the pack: 64 x 64, a few words, nothing to download.",
            search_aliases=["longlive", "load model", "example", "demo", "small model"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for LongLive Session at 64 x 64."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="For CLIP Text Encode and LongLive Timeline: a red ring moves left at night.",
                ),
                io.Vae.Output(display_name="vae", tooltip="The VAE that belongs to it, for LongLive Decode."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        load_miniature()  # refuses files that are missing, damaged or something else, in sentences of ours
        model = comfy.sd.load_diffusion_model(str(DIT))
        model.set_attachments(SIZE_CHECK, check_size)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
        return io.NodeOutput(model, MiniatureCLIP(), vae)


class MiniatureCLIP:
    """As much of a CLIP as text nodes ask for. It has no weights; how it reads a prompt is shown on the node."""

    def __init__(self) -> None:
        self.embedded, self.notes = MiniatureText(), Notes()

    def clone(self) -> "MiniatureCLIP":
        return MiniatureCLIP()

    def tokenize(self, text: str, **_) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_) -> list[list]:
        """A CONDITIONING of the embedding [1, 512, 4096]; tokens are the prompt itself."""
        for note in complaints(tokens) or [f"understood: {parse(tokens)}"]:
            self.notes.add(note)
        return [[self.embedded(tokens), {"pooled_output": None}]]


class Notes:
    """Lines below the node that runs. A page keeps what a node said last, so what is mended must be said as well."""

    def __init__(self) -> None:
        self.context, self.lines = None, []

    def add(self, line: str) -> None:
        context = get_executing_context()
        if context is None:  # called by no node, and perhaps in no server
            return
        from server import PromptServer

        if context != self.context:
            self.context, self.lines = context, []
        self.lines.append(line)
        PromptServer.instance.send_progress_text("\n".join(self.lines), context.node_id)


NODES = [Miniature]
