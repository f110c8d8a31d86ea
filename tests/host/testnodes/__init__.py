"""Nodes for tests: text without a text encoder, a failure, latents as files, a count of live caches."""

import gc
import itertools
import json
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io, ui
from safetensors.torch import save_file

from longlive.model.text_encoder import HashedWords

CATEGORY = "LongLive/test"
CACHE_CLASSES = {"WindowLayerKVCache", "TextKeys"}  # by name: the pack may be imported under more than one
TUNING_CLASSES = {"Accelerator", "AdamW", "Student", "Trainer"}
OWN_TREE = "longlive.model.wan"  # the end of the module whose networks are not the host's


class HashedCLIP:
    """The methods of a CLIP that `CLIPTextEncode` calls, with hashed words as the encoder."""

    def __init__(self) -> None:
        self.words = HashedWords()

    def tokenize(self, text: str, **options) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options) -> list[list]:
        return [[self.words(tokens), {}]]


class TestHashedCLIP(io.ComfyNode):
    """A CLIP that makes an embedding of the hash of every word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestHashedCLIP",
            display_name="Test Hashed CLIP",
            category=CATEGORY,
            inputs=[],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(HashedCLIP())


class TestFail(io.ComfyNode):
    """Pass anything through, or fail when told to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestFail",
            display_name="Test Fail",
            category=CATEGORY,
            inputs=[io.AnyType.Input("value"), io.Boolean.Input("fail", default=True)],
            outputs=[io.AnyType.Output(display_name="value")],
        )

    @classmethod
    def execute(cls, value: object, fail: bool) -> io.NodeOutput:
        if fail:
            raise RuntimeError("TestFail was told to fail")
        return io.NodeOutput(value)


class TestConditioning(io.ComfyNode):
    """A prompt embedding of any shape."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestConditioning",
            display_name="Test Conditioning",
            category=CATEGORY,
            inputs=[
                io.Int.Input("batch", default=1),
                io.Int.Input("rows", default=8),
                io.Int.Input("width", default=4096),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, batch: int, rows: int, width: int) -> io.NodeOutput:
        return io.NodeOutput([[torch.ones(batch, rows, width), {}]])


class TestAttention(io.ComfyNode):
    """Override the attention of a model with the host's own, which counts its calls and fails at call `fail_at`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestAttention",
            display_name="Test Attention",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.Int.Input("fail_at", default=0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, fail_at: int) -> io.NodeOutput:
        calls = itertools.count(1)

        def attend(original, *arguments, **options):
            counted["attention_calls"] = next(calls)
            if counted["attention_calls"] == fail_at:
                raise RuntimeError("TestAttention was told to fail")
            return original(*arguments, **options)

        counted["attention_calls"] = 0
        patched = model.clone()
        patched.model_options["transformer_options"]["optimized_attention_override"] = attend
        return io.NodeOutput(patched)


counted = {
    "attention_calls": 0,
    "warm_after_unload": 0,
}  # by the TestAttention that was made last, and by the TestUnload that ran last


class TestSaveLatent(io.ComfyNode):
    """Write a latent to the output folder as it is and hand it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSaveLatent",
            display_name="Test Save Latent",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.Latent.Input("latent"), io.String.Input("name", default="latent", optional=True)],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent: dict, name: str = "latent") -> io.NodeOutput:
        samples = latent["samples"].detach().cpu().contiguous()
        save_file({"samples": samples}, find_output_file(f"{name}.safetensors"))
        text = f"{tuple(samples.shape)} {samples.dtype}"
        return io.NodeOutput(latent, ui=ui.PreviewText(text))


class TestUnload(io.ComfyNode):
    """Pass anything through, and unload all models of ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestUnload",
            display_name="Test Unload",
            category=CATEGORY,
            inputs=[io.AnyType.Input("value")],
            outputs=[io.AnyType.Output(display_name="value")],
        )

    @classmethod
    def execute(cls, value: object) -> io.NodeOutput:
        comfy.model_management.unload_all_models()
        counted["warm_after_unload"] = count_alive()["warm"]
        return io.NodeOutput(value)


class TestProbe(io.ComfyNode):
    """Count the live objects in the process, each time it is queued."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestProbe",
            display_name="Test Probe",
            category=CATEGORY,
            is_output_node=True,
            inputs=[
                io.AnyType.Input("value", optional=True, tooltip="What must run before."),
                io.String.Input("name", default="probe", optional=True),
            ],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> float:
        return float("nan")

    @classmethod
    def execute(cls, value: object = None, name: str = "probe") -> io.NodeOutput:
        text = json.dumps(count_alive())
        find_output_file(f"{name}.json").write_text(text)
        return io.NodeOutput(ui=ui.PreviewText(text))


def count_alive() -> dict[str, int]:
    """Count the KV caches, parts of a tuning and tensors that are still in memory.

    Caches that ComfyUI can unload like a model count as warm.
    """
    gc.collect()
    objects = gc.get_objects()
    types = set(map(type, objects))
    kinds = {kind for kind in types if CACHE_CLASSES & {base.__name__ for base in kind.__mro__}}
    tuned = {kind for kind in types if kind.__name__ in TUNING_CLASSES or str(kind.__module__).endswith(OWN_TREE)}
    loaded = [getattr(model, "warm_cache", None) for model in comfy.model_management.loaded_models()]
    warm = sum(len(warm_cache.cache.layers) for warm_cache in loaded if warm_cache)
    tensors = [item for item in objects if issubclass(type(item), torch.Tensor)]
    return {
        "caches": sum(type(item) in kinds for item in objects) - warm,
        "warm": warm,
        "of_tunings": sum(type(item) in tuned for item in objects),
        "tensors": len(tensors),
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors),
        "gpu_tensors": sum(tensor.is_cuda for tensor in tensors),
        **counted,
    }


def find_output_file(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / name


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestHashedCLIP, TestFail, TestConditioning, TestAttention, TestSaveLatent, TestUnload, TestProbe]


async def comfy_entrypoint() -> TestExtension:
    gc.freeze()  # or else each count goes through all that ComfyUI has imported
    return TestExtension()
