"""The node that loads the trained miniature, which lies in the pack itself: something that runs with no download."""

from pathlib import Path
from typing import ClassVar

import comfy.sd
import comfy.utils
from comfy.latent_formats import Wan21
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..longlive.miniature.files import DIT, TEACHER, VAE, check_size, load_miniature, present
from ..longlive.miniature.grammar import complaints, parse
from ..longlive.miniature.text import MiniatureText
from ..longlive.model.checkpoint import load_model
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
                io.Model.Output(
                    display_name="teacher",
                    tooltip="Its teacher, for LongLive Tuner: it sees a whole clip at once.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        present(TEACHER)
        load_miniature()  # refuses files that are missing, damaged or something else, in sentences of ours
        load_model(TEACHER)
        model, teacher = load_network(DIT), load_network(TEACHER)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
        return io.NodeOutput(model, MiniatureCLIP(), vae, teacher)


def load_network(path: Path, *, disable_dynamic: bool = False) -> ModelPatcher:
    """A MODEL of one of the miniature's networks; ComfyUI calls this again for one without dynamic VRAM."""
    patcher = comfy.sd.load_diffusion_model(str(path), disable_dynamic=disable_dynamic)
    patcher.set_attachments(SIZE_CHECK, check_size)
    patcher.model.latent_format = Latents()
    patcher.cached_patcher_init = (load_network, (path,))
    return patcher


class Latents(Wan21):
    """Wan's latents by their statistics, but with pictures of their own: previews are a linear map from latents.

    Found by least squares on films of the world, each latent beside the mean of its 8 x 8 pixels.
    """

    # fmt: off
    latent_rgb_factors: ClassVar = [
        [0.025, 0.018, 0.01], [0.178, 0.09, 0.097], [-0.151, -0.118, -0.144], [-0.008, -0.057, -0.056],
        [0.168, 0.073, 0.005], [0.008, -0.067, -0.027], [-0.123, -0.127, -0.199], [-0.056, 0.047, 0.036],
        [0.024, 0.048, -0.075], [-0.028, -0.12, -0.12], [0.028, -0.092, -0.015], [0.048, 0.067, 0.006],
        [-0.021, -0.114, -0.063], [-0.133, -0.129, -0.125], [0.039, 0.094, 0.008], [-0.127, -0.119, -0.053],
    ]
    # fmt: on
    latent_rgb_factors_bias: ClassVar = [-0.051, -0.099, 0.05]


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
        if tokens.strip():  # none at all is what a teacher is guided away from
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
