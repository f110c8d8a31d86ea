"""Nodes that load models: LongLive's own files, and the miniature inside the pack."""

import folder_paths
from comfy_api.latest import io

from .host.loading import NO_LORA, WEIGHT_DTYPES, LoaderChoice, load_merged, load_miniature_networks
from .host.miniature_clip import MiniatureCLIP


class ModelLoader(io.ComfyNode):
    """Load LongLive's weights from a file of any released layout, and merge its LoRA into them (paper §3.2)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = [NO_LORA, *folder_paths.get_filename_list("loras")]
        return io.Schema(
            node_id="LongLiveModelLoader",
            display_name="LongLive Model Loader",
            category="LongLive",
            description="Loads longlive_base and its LoRA, from the original .pt files or from safetensors.",
            search_aliases=["longlive", "self forcing", "causal wan", "load model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file in models/diffusion_models: longlive_base.pt, or any Wan2.1 text-to-video weights.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=loras,
                    default=NO_LORA,
                    tooltip="A file in models/loras: LongLive's lora.pt, or none. It is merged into the weights when "
                    "they are loaded, so it does not slow sampling.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="LoRA strength. LongLive's LoRA is made for 1.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="Precision of the weights. Choose bf16 on an RTX 30 or newer: LongLive was trained in it. "
                    "With default, ComfyUI chooses, often fp16. fp8 halves the memory of the weights. int8, int8 "
                    "rotated and fp8 scaled also compute in 8 bits: faster where the card and ComfyUI have the "
                    "kernels (int8 from RTX 20, fp8 from RTX 40), less exact. The report says whether they have.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for LongLive Session."),
                io.String.Output(
                    display_name="report", tooltip="What was loaded, and which part of the LoRA was used."
                ),
            ],
        )

    @classmethod
    def execute(cls, model_name: str, lora_name: str, lora_strength: float, weight_dtype: str) -> io.NodeOutput:
        model, report = load_merged(LoaderChoice(model_name, lora_name, lora_strength, weight_dtype))
        return io.NodeOutput(model, report)


class MiniatureLoader(io.ComfyNode):
    """Load the miniature as ComfyUI loads any Wan2.1 model: its network, its text encoder, its VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveMiniature",
            display_name="LongLive Miniature",
            category="LongLive",
            description="A small trained model inside the pack: 64 x 64 pixels, a few words, no download.",
            search_aliases=["longlive", "load model", "example", "demo", "small model"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for LongLive Session at 64 x 64."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="For CLIP Text Encode and LongLive Timeline. A prompt it understands: a red ring moves "
                    "left at night.",
                ),
                io.Vae.Output(display_name="vae", tooltip="The miniature's VAE, for LongLive Decode."),
                io.Model.Output(
                    display_name="teacher",
                    tooltip="For LongLive Tuner alone: it judges short clips and makes no videos.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        model, teacher, vae = load_miniature_networks()
        return io.NodeOutput(model, MiniatureCLIP(), vae, teacher)


NODES = [ModelLoader, MiniatureLoader]
