"""The modes of our network that a benchmark measures, and what each needs."""

from collections.abc import Iterator
from dataclasses import replace

from contenders import Ours, Task

from longlive.errors import ConfigError
from longlive.model.causal import CausalWan
from longlive.model.compiled import INDUCTOR, compile_model
from longlive.model.eight_bit import EightBit
from longlive.model.kitchen import import_kitchen
from longlive.model.speed import Speed, explain_no_attention
from longlive.model.wan import Geometry, WanModel
from longlive.weights.quantise import FORM, is_linear_of_layer, make_empty_model, quantise_linear

COMPILED = f"{Speed.EXACT}, compiled"
WITHOUT_COMPILER = "aot_eager"  # a backend of `torch.compile` that makes graphs and computes them in PyTorch
WITH_PIXELS = (Speed.EXACT, Speed.FASTEST)  # measured with each VAE, too


def iter_modes(task: Task) -> Iterator[tuple[str, Ours | str]]:
    """Yield each speed and each form of 8-bit linears by its name, or a sentence why it is left out.

    Only one has weights of its own at a time. On a CPU, layers are compiled without a compiler and 8-bit linears are
    computed without kernels for them, to see that they work.
    """
    exact = CausalWan.of_tree(task.tree)
    yield Speed.EXACT, Ours(task, exact)
    compiled, outcome = compile_model(exact, backend=INDUCTOR if task.device.type == "cuda" else WITHOUT_COMPILER)
    yield COMPILED, outcome if compiled is exact else Ours(task, compiled)
    yield Speed.FAST, attend_in_8_bit(task)
    for form in EightBit:
        if reason := explain_missing(task, form):
            yield form, reason
            continue
        quantised = replace(task, tree=quantise(task.tree, form))
        yield form, Ours(quantised, CausalWan.of_tree(quantised.tree))
        if form is EightBit.INT8:
            yield Speed.FASTEST, attend_in_8_bit(quantised)


def attend_in_8_bit(task: Task) -> Ours | str:
    if reason := explain_no_attention(task.device, task.dtype):
        return reason
    return Ours(task, CausalWan.of_tree(task.tree, quantised_attention=True, joined=True))


def explain_missing(task: Task, form: EightBit) -> str:
    """Say why linears of a form cannot be measured; nothing if they can."""
    try:
        import_kitchen()
    except ConfigError as error:
        return str(error)
    return form.explain_slow(task.device) if task.device.type == "cuda" else ""


def quantise(tree: WanModel, form: EightBit) -> WanModel:
    """Return a tree with the linears of its layers in 8 bits. All other weights are shared."""
    state = {}
    for name, weight in tree.state_dict().items():
        state |= quantise_linear(name, weight, form) if is_linear_of_layer(name) else {name: weight}
    model = make_empty_model(Geometry.of_tree(tree), state, "the benchmark")
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith(FORM)}, assign=True)
    return model.requires_grad_(False)
