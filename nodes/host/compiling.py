"""What ComfyUI's TorchCompileModel and its like ask for: a MODEL whose layers are compiled.

They wrap ComfyUI's own forward, which a session does not use; its layers are compiled with their backend instead. The
name of a compiled model is in the keys of its blocks. So the choice is made once the weights are loaded and before the
first key, and weights that move later are an error.
"""

import logging
from weakref import WeakKeyDictionary

from comfy.model_patcher import ModelPatcher

from ...longlive.errors import SamplingError
from ...longlive.model.causal import CausalWan
from ...longlive.model.compiled import INDUCTOR, CompiledWan, compile_model, describe_refusal
from .identity import get_attention_override, has_hooks, list_unrecognisable

log = logging.getLogger(__name__)

COMPILE_KEY = "torch.compile"  # of the wrapper
COMPILE_OPTIONS = "torch_compile_kwargs"  # in model_options

_outcomes: WeakKeyDictionary[ModelPatcher, str] = WeakKeyDictionary()


def is_compiling_asked(patcher: ModelPatcher) -> bool:
    """Whether a node asked for a compiled MODEL."""
    return any(wrappers.get(COMPILE_KEY) for wrappers in patcher.wrappers.values())


def compile_as_asked(patcher: ModelPatcher, model: CausalWan) -> CausalWan:
    """Compile the layers of a loaded MODEL with the backend, the mode and the options that a node asked for.

    Returns the model as it is where that cannot be done, and warns once.
    """
    if obstacles := list_obstacles(patcher):
        outcome = describe_refusal(" and ".join(obstacles))
    else:
        asked = patcher.model_options.get(COMPILE_OPTIONS, {})
        # Functions among the options filter what ComfyUI's own forward depends on.
        options = {name: value for name, value in (asked.get("options") or {}).items() if not callable(value)}
        backend, mode = asked.get("backend") or INDUCTOR, asked.get("mode")
        model, outcome = compile_model(model, backend=backend, mode=mode, options=options)
    if _outcomes.get(patcher) != outcome:
        log.log(logging.INFO if isinstance(model, CompiledWan) else logging.WARNING, "the MODEL is %s", outcome)
        _outcomes[patcher] = outcome
    return model


def list_irreproducible(model: CausalWan) -> list[str]:
    """List what may compute other blocks in another process, under the same name."""
    is_chosen_anew = isinstance(model, CompiledWan) and not model.compiler.compiling.is_reproducible
    return ["a mode of torch.compile that chooses kernels by their speed"] * is_chosen_anew


def describe_compiling(patcher: ModelPatcher) -> str:
    """Describe what became of the wish to compile a MODEL; empty if there is none."""
    return _outcomes.get(patcher, "compiled when it samples") if is_compiling_asked(patcher) else ""


def check_weights_stay(patcher: ModelPatcher, model: CausalWan) -> None:
    """Check that a compiled model can still compute. Raises SamplingError if ComfyUI has taken its weights away."""
    if isinstance(model, CompiledWan) and (obstacles := list_obstacles(patcher)):
        raise SamplingError(
            f"the MODEL was compiled, but now {' and '.join(obstacles)}; finished blocks are kept; free memory and "
            f"queue again, or remove the node that compiles"
        )


def list_obstacles(patcher: ModelPatcher) -> list[str]:
    """List why a loaded MODEL cannot be compiled: what a node added, and weights that are not where they are used."""
    layers, home = list(patcher.model.diffusion_model.modules()), patcher.load_device.type
    found = {
        "a node overrides its attention": get_attention_override(patcher) is not None,
        "ComfyUI moves its weights (dynamic VRAM)": patcher.is_dynamic(),
        "a part of its weights is not in GPU memory (low VRAM)": any(
            weight.device.type != home for layer in layers for weight in layer.parameters(recurse=False)
        ),
        "functions change its weights in every pass": any(
            getattr(layer, name, None) for layer in layers for name in ("weight_function", "bias_function")
        ),
        "its layers have hooks": any(map(has_hooks, layers)),
    }
    carried = [f"it carries {what}" for what in list_unrecognisable(patcher)]
    return [*carried, *[what for what, is_so in found.items() if is_so]]
