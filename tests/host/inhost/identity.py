"""Whether MODELs are told apart that make other videos, and known again where they are the same; runs inside a host."""

import functools
import itertools
from types import SimpleNamespace

import comfy.sd
import torch
from comfyui_longlive.longlive.errors import LongLiveError
from comfyui_longlive.nodes.identity import attention_override, identity_of, model_digest, opaque, unrecognisable
from model_files import dit_weights
from torch import Tensor, nn

FLAG = "off"


def loaded(**changes: Tensor):
    return comfy.sd.load_diffusion_model_state_dict(dit_weights() | changes)


def overridden(override) -> SimpleNamespace:
    return SimpleNamespace(model_options={"transformer_options": {"optimized_attention_override": override}})


def patcher_of(network: nn.Module, **backup: object) -> SimpleNamespace:
    """As much of a ModelPatcher as an identity asks for."""
    return SimpleNamespace(
        model=SimpleNamespace(diffusion_model=network),
        backup={f"diffusion_model.{key}": SimpleNamespace(weight=weight) for key, weight in backup.items()},
        patches={},
        object_patches={},
        injections={},
        weight_wrapper_patches={},
        model_options={},
        patches_uuid="uuid",
    )


def check_weights() -> None:
    bias = dit_weights()["head.head.bias"].clone()
    bias[0] += 1e-4
    assert model_digest(loaded()) == model_digest(loaded())
    assert model_digest(loaded()) != model_digest(loaded(**{"head.head.bias": bias}))


def check_opaque_models() -> None:
    """Nothing tells what they compute, so no two are the same."""
    for carried in ("injections", "weight_wrapper_patches", "object_patches"):
        first, second = loaded(), loaded()
        for patcher in (first, second):
            setattr(patcher, carried, {"diffusion_model.blocks.0.ffn": [object()]})
            assert len(opaque(patcher)) == len(unrecognisable(patcher)) == 1
        assert model_digest(first) != model_digest(second) != model_digest(loaded())
    assert opaque(loaded()) == []
    stateful = loaded()
    stateful.model_options["transformer_options"]["optimized_attention_override"] = functools.partial(next, object())
    assert len(opaque(stateful)) == 1
    assert model_digest(stateful) == model_digest(loaded())  # its weights are those of any other


def check_attention_overrides() -> None:
    def sage(mode: object):
        def kernel(*_):
            return mode

        def override(original, *arguments):
            return kernel(original, *arguments)

        return override

    def unfinished():
        def override(*_):
            return later

        if override is None:
            later = 1
        return override

    def name(override) -> str | None:
        return identity_of(attention_override(overridden(override)))

    def constant(*_):
        return FLAG, 1

    def other_constant(*_):
        return FLAG, 2

    other_constant.__qualname__ = constant.__qualname__
    assert name(constant) != name(other_constant)
    before, globals()["FLAG"] = name(constant), "on"
    assert name(constant) != before
    globals()["FLAG"] = "off"
    assert name(constant) == before

    assert name(sage("fp8")) == name(sage("fp8"))
    assert len({name(None), name(sage("fp8")), name(sage("fp16"))}) == 3
    assert name(functools.partial(sage("fp8"), 1)) != name(functools.partial(sage("fp8"), 2))
    for unknown in (sage(itertools.count()), LongLiveError(), unfinished()):
        assert name(unknown) is None


def check_patched_quantised_weights_are_known_by_their_originals() -> None:
    """A quantised weight is saved whole and listed in pieces."""

    class Quantised:
        def state_dict(self, prefix: str) -> dict[str, Tensor]:
            return {prefix: torch.ones(3), f"{prefix}_scale": torch.ones(())}

    class Network(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("weight", torch.full((3,), value))
            self.register_buffer("weight_scale", torch.tensor(value))

    patched = patcher_of(Network(2.0), weight=Quantised())
    assert model_digest(patched) == model_digest(patcher_of(Network(1.0)))
    assert model_digest(patched) != model_digest(patcher_of(Network(2.0)))


def check_weights_a_loader_hides_are_found() -> None:
    """GGUF loaders list placeholders, and one key that only says what the file is."""

    class Hidden(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), value), requires_grad=False)

        def state_dict(self, **_) -> dict[str, Tensor]:
            return {"weight": torch.empty(3, device="meta"), "temp.weight": torch.empty(3, device="meta")}

    one, same, other = (patcher_of(Hidden(value)) for value in (1.0, 1.0, 2.0))
    assert model_digest(one) == model_digest(same) != model_digest(other)
