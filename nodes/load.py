"""The node that loads LongLive's own files."""

import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from ..longlive.errors import CheckpointError
from ..longlive.model.checkpoint import COMPUTE_DTYPES, Lora, merged_weights
from ..longlive.model.weights import read

NO_LORA = "none"
DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class ModelLoader(io.ComfyNode):
    """Load LongLive's weights in any released layout, with its LoRA merged once (paper §3.2)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = [NO_LORA, *folder_paths.get_filename_list("loras")]
        return io.Schema(
            node_id="LongLiveModelLoader",
            display_name="LongLive Model Loader",
            category="LongLive",
            description="Loads longlive_base and its LoRA: the original .pt files or safetensors.",
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
                    tooltip="A file in models/loras, for LongLive its lora.pt. Merged once: it costs no time later.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How much of the LoRA is merged. LongLive's is made for 1.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the weights are kept. Default lets ComfyUI choose; fp8 halves their memory.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for LongLive Session."),
                io.String.Output(display_name="report", tooltip="What was loaded, and what of the LoRA was used."),
            ],
        )

    @classmethod
    def execute(cls, model_name: str, lora_name: str, lora_strength: float, weight_dtype: str) -> io.NodeOutput:
        weights = read(folder_paths.get_full_path_or_raise("diffusion_models", model_name))
        lora = None
        if lora_name != NO_LORA:
            lora = Lora.read(folder_paths.get_full_path_or_raise("loras", lora_name))
        dtype = DTYPES[weight_dtype]
        exact = dtype if dtype in COMPUTE_DTYPES else None  # fp8 is left to ComfyUI, which knows how to keep it
        state, report = merged_weights(weights, lora=lora, strength=lora_strength, dtype=exact)
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype} if dtype else {})
        if model is None:
            raise CheckpointError(f"ComfyUI does not recognise {model_name}; expected Wan2.1 text-to-video weights")
        return io.NodeOutput(model, str(report))


NODES = [ModelLoader]
