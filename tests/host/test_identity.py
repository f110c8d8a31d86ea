"""MODELs of different results have different identities; otherwise the block store would return a wrong video."""

import model_files
import pytest
from graphs import chain, make_node, save_latents
from hosts import HOSTS
from inside import call_inside
from safetensors.torch import load_file, save_file

from longlive.weights.lora import Lora

CHECKS = {
    "identity": (
        "check_weights",
        "check_precision_of_weights",
        "check_fast_fp8_has_kernels_of_its_own",
        "check_weights_that_were_in_use",
        "check_weights_are_hashed_once_and_said_so",
        "check_opaque_models",
        "check_settings_of_gguf_layers",
        "check_patched_quantised_weights_are_known_by_their_originals",
        "check_weights_a_loader_hides_are_found",
    ),
    "kernels": (
        "check_attention_overrides",
        "check_installed_kernels",
        "check_a_newer_kernel_replaces_pytorch_s_own",
        "check_kernels_of_triton_are_their_source",
        "check_calls_of_a_run",
        "check_methods_of_objects_are_not_functions",
    ),
}


@pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)
def test_models_are_distinguished_and_recognised(release):
    for module, checks in CHECKS.items():
        call_inside(release, module, *checks)


def test_a_bypassed_lora_at_another_strength_makes_another_video(newest):
    """Its layers are injected, not patched: no hash sees them, so nothing is stored."""

    name = "bypassed.safetensors"
    save_file(Lora.read(newest.models / model_files.LORA).as_comfy_state(), newest.models / "loras" / name)

    def latents(strength: float):
        graph = chain(("a boat", 1), seed=90)
        lora = {"lora_name": name, "strength_model": strength}
        graph["lora"] = make_node("LoraLoaderBypassModelOnly", model=["model", 0], **lora)
        graph["session"]["inputs"]["model"] = ["lora", 0]
        newest.run(save_latents(graph, "chunk0", f"bypass_{strength}"))
        return load_file(newest.output / f"bypass_{strength}.safetensors")["samples"]

    weak, strong = latents(0.5), latents(1.0)
    assert (weak - strong).abs().max() > 1e-3
    assert "blocks made with it are not stored" in newest.log
