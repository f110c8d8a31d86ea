"""A causal model whose layers `torch.compile` joins into one graph, by choice.

All layers are one graph: weights, keys and values are its inputs, and its only integers are shapes. So a window that
has rolled needs one graph for blocks and one for recaches, and other slots compile nothing. Other passes run as they
are: those before the window rolls, whose shapes change with every block; those that write a sink that moves; and the
last layer of a pass that ends at its keys. The placement alone decides which they are, so a block does not depend on
what ran before it.
Dimension key: B batch, T tokens of one pass, S tokens attended, L text rows, D model width, N heads, H channels per
head, P = H / 2 pairs.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import SamplingError
from .causal import CausalWan, KVCache, LayerKVCache, LayerModulation, Modulations, TextKeys
from .fused import PLAIN
from .placement import Placement
from .rope import Rotation, make_table
from .wan import MODULATIONS, BlockTree

log = logging.getLogger(__name__)

INDUCTOR = "inductor"
INDUCTOR_CONFIG = "torch._inductor.config"  # this and the next are loaded when they are needed: they take seconds
COMPILER_ERRORS = "torch._dynamo.exc"
MAX_GRAPHS = 4  # of one shape: one for all layers, and a few where layers hold their weights in different ways
NOWHERE = Placement(0, 0, (), (), 0)  # in a graph, slots are a tensor
Backend = str | Callable[..., Any]
RunLayer = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class TensorRoom:
    """Where a pass writes in one layer, with its slots as a tensor.

    Keys, rotated, and values [B, S, N, H] are all that the pass may attend; `slots_T` are those of its own tokens.
    """

    keys_BSNH: Tensor
    values_BSNH: Tensor
    slots_T: Tensor
    layer: LayerKVCache | None = None  # that it is in

    def find_room(self, place: Placement, tokens: int) -> None:
        """Find no slices: their integers would change with every block."""

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Store the un-rotated keys and the values of the pass; return all that it may attend."""
        self.keys_BSNH.index_copy_(1, self.slots_T, rotation.rotate_pass(k_BTNH))
        self.values_BSNH.index_copy_(1, self.slots_T, v_BTNH)
        return self.keys_BSNH, self.values_BSNH


@dataclass(frozen=True, slots=True)
class TensorRooms:
    """The room of a pass in all layers."""

    layers: Sequence[TensorRoom]


def find_rooms(cache: KVCache, place: Placement, tokens_per_frame: int, device: torch.device) -> TensorRooms | None:
    """Find the room of a pass, if the window has rolled and all frames have a slot."""
    if place.start + place.frames <= len(place.attended_slots):
        return None
    slots_T, rooms = make_slots(place, tokens_per_frame, device), []
    for layer in cache.layers:
        room = layer.find_room(place, place.frames * tokens_per_frame)
        if room is None:
            return None
        rooms.append(TensorRoom(room.keys_BSNH, room.values_BSNH, slots_T, layer))
    return TensorRooms(rooms)


def make_slots(place: Placement, tokens_per_frame: int, device: torch.device) -> Tensor:
    """Make the slots [T] of the tokens of a pass."""
    ends = [(tokens_per_frame * span.slot, tokens_per_frame * (span.slot + span.count)) for span in place.spans]
    return torch.cat([torch.arange(*each, device=device) for each in ends])


@dataclass(frozen=True, slots=True)
class Compiling:
    """How to compile: a backend of `torch.compile`, and its mode or options."""

    backend: Backend = INDUCTOR
    mode: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reproducible(self) -> bool:
        """Whether it chooses the same kernels in every process: by a mode, inductor takes those that run fastest."""
        return self.mode is None

    @property
    def backend_name(self) -> str:
        return self.backend if isinstance(self.backend, str) else self.backend.__name__

    @property
    def name(self) -> str:
        """The name of the arithmetic: another release or another option may round differently."""
        options = [f"{name}={value}" for name, value in sorted(self.options.items())]
        return "-".join(filter(None, ["compiled", self.backend_name, torch.__version__, self.mode, *options]))

    def compile(self, function: Callable) -> Callable:
        """Compile a copy of a function: PyTorch limits the graphs of one piece of code."""
        copied = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        options = self._list_options()
        return torch.compile(
            copied, fullgraph=True, dynamic=False, backend=self.backend, mode=self.mode, options=options
        )

    def _list_options(self) -> dict[str, Any] | None:
        """List the options. Without a mode, inductor is kept from choosing by speed among kernels that round apart."""
        options = dict(self.options)
        is_inductor = self.backend == INDUCTOR and self.is_reproducible
        if is_inductor and hasattr(import_module(INDUCTOR_CONFIG), "deterministic"):
            options = {"deterministic": True} | options
        return options or None


class LayerCompiler:
    """Compiles the layers of one network: all of them as one graph for each shape of a pass."""

    def __init__(self, compiling: Compiling) -> None:
        self.compiling = compiling
        self._functions: dict[tuple, RunLayer] = {}
        self._obstacles: dict[str, str] = {}  # by kernel

    def run(
        self,
        model: CausalWan,
        block: BlockTree,
        u_BTD: Tensor,
        modulation: LayerModulation,
        room: TensorRoom,
        text_keys: tuple[Tensor, Tensor],
        table_T1P22: Tensor,
    ) -> Tensor:
        """Run one layer of a plain model. Raises SamplingError if it does not compile."""
        shapes = model.kernel, u_BTD.dtype, u_BTD.shape, room.keys_BSNH.shape, text_keys[0].shape
        if shapes not in self._functions:
            log.info("%s compiles the layers for %d tokens", self.compiling.backend_name, u_BTD.shape[1])
            self._functions[shapes] = self.compiling.compile(run_layer)
        try:
            return self._functions[shapes](model, block, u_BTD, modulation, room, text_keys, table_T1P22)
        except import_module(COMPILER_ERRORS).TorchDynamoException as error:
            raise SamplingError(
                f"{self.compiling.backend_name} could not compile the layers ({describe_error(error)}); finished "
                f"blocks are kept; continue without compiling"
            ) from error

    def find_obstacle(self, model: CausalWan) -> str:
        """Find why the layers of a plain model cannot be compiled; empty if they can."""
        if model.kernel not in self._obstacles:
            broken = find_broken_compiler(self.compiling, model.device)
            self._obstacles[model.kernel] = broken or find_untraceable(model)
        return self._obstacles[model.kernel]


def run_layer(
    model: CausalWan,
    block: BlockTree,
    u_BTD: Tensor,
    modulation: LayerModulation,
    room: TensorRoom,
    text_keys: tuple[Tensor, Tensor],
    table_T1P22: Tensor,
) -> Tensor:
    """Run one layer on tensors only: this function is compiled."""
    return model.run_block(block, u_BTD, modulation, room, text_keys, NOWHERE, Rotation(table_T1P22), False)


_compilers: WeakKeyDictionary[nn.Module, dict[str, LayerCompiler]] = WeakKeyDictionary()


def find_compiler(model: CausalWan, compiling: Compiling) -> LayerCompiler:
    """Find the compiler of a network; what it compiled lasts as long as the network."""
    compilers = _compilers.setdefault(cast(nn.Module, model.tree), {})
    return compilers.setdefault(compiling.name, LayerCompiler(compiling))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledWan(CausalWan):
    """A causal model whose layers are compiled."""

    plain: CausalWan  # without a form of the machine: a compiler joins operations itself
    compiler: LayerCompiler

    def forward(
        self,
        latents_BFCHW: Tensor,
        text: TextKeys,
        cache: KVCache,
        place: Placement,
        modulations: Modulations,
        rotation: Rotation,
        *,
        with_flow: bool = True,
    ) -> Tensor | None:
        rows, columns = self.geometry.grid(*latents_BFCHW.shape[-2:])
        rooms = find_rooms(cache, place, rows * columns, self.device)
        return CausalWan.forward(
            self, latents_BFCHW, text, rooms or cache, place, modulations, rotation, with_flow=with_flow
        )

    def run_block(
        self,
        block: BlockTree,
        u_BTD: Tensor,
        modulation: LayerModulation,
        cache: LayerKVCache,
        text_keys: tuple[Tensor, Tensor],
        place: Placement,
        rotation: Rotation,
        only_keys: bool,
    ) -> Tensor:
        if isinstance(cache, TensorRoom) and not only_keys:
            return self.compiler.run(self.plain, block, u_BTD, modulation, cache, text_keys, rotation.pass_T1P22)
        own = cache.layer if isinstance(cache, TensorRoom) and cache.layer else cache
        return CausalWan.run_block(self, block, u_BTD, modulation, own, text_keys, place, rotation, only_keys)


def compile_model(
    model: CausalWan,
    *,
    backend: Backend = INDUCTOR,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[CausalWan, str]:
    """Compile the layers of a model; return it, and what was done, for a report.

    Takes a backend of `torch.compile`, with a mode or options of it. Returns the model as it is, with the reason, where
    the backend does not work or the layers do not become a graph. The first pass of each shape compiles, which takes
    longer.
    """
    compiling = Compiling(backend, None if mode == "default" else mode, options or {})
    plain, compiler = replace(model, pointwise=PLAIN), find_compiler(model, compiling)
    if obstacle := compiler.find_obstacle(plain):
        return model, describe_refusal(obstacle)
    facts = {each.name: getattr(model, each.name) for each in fields(model)}
    facts["kernel"] = f"{model.kernel} {compiling.name}"
    return CompiledWan(**facts, plain=plain, compiler=compiler), f"compiled by {compiling.backend_name}"


def describe_refusal(obstacle: str) -> str:
    """Describe why a model is not compiled, for a report."""
    return f"not compiled: {obstacle}"


def find_broken_compiler(compiling: Compiling, device: torch.device) -> str:
    """Find why nothing can be compiled on a device, by compiling a sum; empty if it can."""
    try:
        compiling.compile(add_one)(torch.ones(8, device=device))
    except Exception as error:  # a compiler fails in many ways, and without it the network only is slower
        need = "; install a C++ compiler, and for a GPU Triton" if compiling.backend == INDUCTOR else ""
        return f"{compiling.backend_name} does not work here ({describe_error(error)}){need}"
    return ""


def add_one(x: Tensor) -> Tensor:
    return x + 1


@torch.no_grad()
def find_untraceable(model: CausalWan) -> str:
    """Find why the layers of a plain model do not become a graph, by a trial with two tokens; empty if they do."""
    graphs: list[torch.fx.GraphModule] = []

    def count_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def make_zeros(*shape: int) -> Tensor:
        return torch.zeros(1, *shape, device=model.device, dtype=model.dtype)

    geometry, run = model.geometry, Compiling(count_graph).compile(run_layer)
    u_BTD, modulation = make_zeros(2, geometry.dim), make_zeros(MODULATIONS, 1, geometry.dim).unbind(1)
    keys, values, *text_keys = (make_zeros(4, geometry.num_heads, geometry.head_dim) for _ in range(4))
    room = TensorRoom(keys, values, torch.arange(2, device=model.device))
    table_T1P22 = make_table(0, 1, (1, 2), geometry.head_dim, model.device)
    try:
        for block in model.tree.blocks:
            run(model, block, u_BTD, LayerModulation(*modulation), room, tuple(text_keys), table_T1P22)
    except Exception as error:  # of any layer or attention that PyTorch cannot trace
        return f"PyTorch cannot trace its layers or its attention ({describe_error(error)})"
    return f"its layers are {len(graphs)} graphs, expected at most {MAX_GRAPHS}" if len(graphs) > MAX_GRAPHS else ""


def describe_error(error: Exception) -> str:
    """Describe an error, or that of the backend in it, by its kind and its first line."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {str(inner).partition(chr(10))[0]}"
