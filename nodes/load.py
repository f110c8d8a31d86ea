"""The node that loads LongLive's own files."""

import comfy.model_management
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..longlive.errors import CheckpointError
from ..longlive.model.checkpoint import COMPUTE_DTYPES, Lora, merged_weights, usual_dtype
from ..longlive.model.weights import Weights, read

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
                    tooltip="How the weights are kept. Default lets ComfyUI choose, on recent NVIDIA cards fp16; "
                    "LongLive was trained for bf16; fp8 halves their memory.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for LongLive Session."),
                io.String.Output(display_name="report", tooltip="What was loaded, and what of the LoRA was used."),
            ],
        )

    @classmethod
    def execute(cls, model_name: str, lora_name: str, lora_strength: float, weight_dtype: str) -> io.NodeOutput:
        model, report = load_merged(model_name, lora_name, lora_strength, weight_dtype)
        return io.NodeOutput(model, report)


def load_merged(
    model_name: str, lora_name: str, lora_strength: float, weight_dtype: str, *, disable_dynamic: bool = False
) -> tuple[ModelPatcher, str]:
    """A MODEL of LongLive's files, its LoRA merged, and a report of them. Raises CheckpointError for other files."""
    weights = read(folder_paths.get_full_path_or_raise("diffusion_models", model_name))
    lora = None
    if lora_name != NO_LORA:
        lora = Lora.read(folder_paths.get_full_path_or_raise("loras", lora_name))
    dtype = DTYPES[weight_dtype] or narrower_dtype(weights)
    exact = dtype if dtype in COMPUTE_DTYPES else None  # fp8 is left to ComfyUI, which knows how to keep it
    state, report = merged_weights(weights, lora=lora, strength=lora_strength, dtype=exact)
    model = comfy.sd.load_diffusion_model_state_dict(
        state, model_options={"dtype": dtype} if dtype else {}, disable_dynamic=disable_dynamic
    )
    if model is None:
        raise CheckpointError(f"ComfyUI does not recognise {model_name}; expected Wan2.1 text-to-video weights")
    model.cached_patcher_init = (load_again, (model_name, lora_name, lora_strength, weight_dtype))
    return model, str(report)


def load_again(*values, disable_dynamic: bool = False) -> ModelPatcher:
    """The same MODEL once more, for nodes that need one without dynamic VRAM (torch.compile) or on another device."""
    return load_merged(*values, disable_dynamic=disable_dynamic)[0]


def narrower_dtype(weights: Weights) -> torch.dtype | None:
    """What ComfyUI would choose for these weights, if that takes less room than the file's own.

    With dynamic VRAM it would keep the file's tensors in RAM and convert them at every use.
    """
    usual = usual_dtype(weights)
    chosen = comfy.model_management.unet_dtype(
        model_params=sum(tensor.numel() for tensor in weights.tensors.values()),
        supported_dtypes=list(comfy.supported_models.WAN21_T2V.supported_inference_dtypes),
        weight_dtype=usual,
    )
    return chosen if chosen.itemsize < usual.itemsize else None


NODES = [ModelLoader]
