"""The modes of our network that a benchmark measures, and what each needs."""

from collections.abc import Iterator, Sequence
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
ATTENTION, LINEARS = "8-bit attention", "INT8 linears"  # what a speed may lack


def name_speed(speed: Speed, *missing: str) -> str:
    """Name what computes at a speed, by what it lacks."""
    return f"{speed} without {' and '.join(missing)}" if missing else speed


SUBSTITUTES = {  # what a GPU computes at a speed that lacks something, and the mode that is the same
    name_speed(Speed.FAST, ATTENTION): Speed.EXACT,
    name_speed(Speed.FASTEST, ATTENTION): EightBit.INT8,
    name_speed(Speed.FASTEST, LINEARS): Speed.FAST,
    name_speed(Speed.FASTEST, ATTENTION, LINEARS): Speed.EXACT,
}
WITH_PIXELS = (  # measured with each VAE, too
    Speed.EXACT,
    *(name for name in (Speed.FASTEST, *SUBSTITUTES) if name.startswith(Speed.FASTEST)),
)


def iter_modes(task: Task) -> Iterator[tuple[str, Ours | str]]:
    """Yield each speed and each form of 8-bit linears by its name, or a sentence why it is left out.

    A speed without all of its kernels is what is computed then, as choose_means chooses it, under a name of its own.
    Only one has weights of its own at a time. On a CPU, layers are compiled without a compiler and 8-bit linears are
    computed without kernels for them, to see that they work.
    """
    exact = CausalWan.of_tree(task.tree)
    yield Speed.EXACT, Ours(task, exact)
    compiled, outcome = compile_model(exact, backend=INDUCTOR if task.device.type == "cuda" else WITHOUT_COMPILER)
    yield COMPILED, outcome if compiled is exact else Ours(task, compiled)
    missing = []
    if reason := explain_no_attention(task.device, task.dtype):
        missing.append(ATTENTION)
        yield ATTENTION, reason
    yield compute_at(Speed.FAST, task, missing)
    for form in EightBit:
        reason = explain_missing(task, form)
        quantised = task if reason else replace(task, tree=quantise(task.tree, form))
        yield form, reason or Ours(quantised, CausalWan.of_tree(quantised.tree))
        if form is EightBit.INT8:
            yield compute_at(Speed.FASTEST, quantised, [*missing, LINEARS] if reason else missing)


def compute_at(speed: Speed, task: Task, missing: Sequence[str]) -> tuple[str, Ours]:
    """Name what computes a task at a speed without what is missing, and return it; the task has its linears."""
    model = CausalWan.of_tree(task.tree, quantised_attention=ATTENTION not in missing, joined=True)
    return name_speed(speed, *missing), Ours(task, model)


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
