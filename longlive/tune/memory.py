"""What a student remembers while it learns: keys and values that nothing overwrites, so that a graph may hold them.

The sampler's memory (`cache.py`) is written in place; here a memory is a value, and a call leaves a new one. Where
frames lie and what is attended, `window.py` says for both.

Dimension key: B batch, T tokens of one frame, N heads, H channels per head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.rope import Rotation
from ..window import Placement, Window


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame in one layer, [B, T, N, H] each."""

    turned_k: Tensor  # rotated at the frame's own position
    v: Tensor
    k: Tensor | None = None  # un-rotated, of a sink that moves
    link: "Frame | None" = None  # of the exit step, with its graph; the values are those of the clean pass

    def attended(self) -> "Frame":
        """The values, and the gradient of the link: a straight-through estimator (reference v1.0, measured)."""
        if self.link is None or not torch.is_grad_enabled():
            return self
        k = None if self.k is None or self.link.k is None else through(self.k, self.link.k)
        return Frame(through(self.turned_k, self.link.turned_k), through(self.v, self.link.v), k)

    def linked_to(self, link: "Frame | None") -> "Frame":
        return replace(self, link=link)

    def zeroed(self) -> "Frame":
        k = None if self.k is None else torch.zeros_like(self.k)
        return Frame(torch.zeros_like(self.turned_k), torch.zeros_like(self.v), k)


def through(value: Tensor, link: Tensor) -> Tensor:
    """`value`, with the gradient of `link`."""
    return value + (link - link.detach())


Layer = Mapping[int, Frame]
"""The frames of a layer by slot."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The frames of all layers, as a value."""

    layers: tuple[Layer, ...]

    @classmethod
    def empty(cls, num_layers: int) -> "Memory":
        return cls(tuple({} for _ in range(num_layers)))

    def unlinked(self) -> "Memory":
        """The same values without their graph."""
        return Memory(tuple({slot: frame.linked_to(None) for slot, frame in layer.items()} for layer in self.layers))

    def forgotten(self, sink: int) -> "Memory":
        """An empty memory whose sink is there, and zero: what the reference's trainer keeps after a switch."""
        return Memory(tuple({slot: layer[slot].zeroed() for slot in range(sink)} for layer in self.layers))

    def tensors(self) -> dict[str, Tensor]:
        """The values by name, for a checkpoint."""
        return {
            f"{i}.{slot}.{name}": tensor
            for i, layer in enumerate(self.layers)
            for slot, frame in layer.items()
            for name, tensor in (("turned_k", frame.turned_k), ("v", frame.v), ("k", frame.k))
            if tensor is not None
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], num_layers: int) -> "Memory":
        """Undo `tensors`."""
        layers: list[dict[int, Frame]] = [{} for _ in range(num_layers)]
        for name in tensors:
            i, slot, part = name.split(".")
            if part == "v":
                key = f"{i}.{slot}"
                frame = Frame(tensors[f"{key}.turned_k"], tensors[name], tensors.get(f"{key}.k"))
                layers[int(i)][int(slot)] = frame
        return cls(tuple(layers))


class Call:
    """One pass of a network over a memory: what `CausalWan.forward` writes to, and the memory it leaves.

    A layer may be passed twice, as gradient checkpointing does: it finds the same past again.
    """

    def __init__(self, memory: Memory, window: Window, *, moves_sink: bool) -> None:
        self.window = window
        self.layers = [_LayerCall(layer, window.sink if moves_sink else 0) for layer in memory.layers]

    def memory(self, links: Memory | None = None) -> Memory:
        """The memory with this call's frames in it; their gradients go to those of `links` in the same slots."""
        layers = []
        for i, layer in enumerate(self.layers):
            written = layer.written
            if links is not None:
                written = {slot: frame.linked_to(links.layers[i][slot]) for slot, frame in written.items()}
            layers.append({**layer.past, **written})
        return Memory(tuple(layers))


class _LayerCall:
    """One layer of a call."""

    def __init__(self, past: Layer, moving_sink: int) -> None:
        self.past, self.moving_sink = past, moving_sink
        self.frames: list[Frame] = []  # of the call, also those that no slot takes
        self.written: Layer = {}

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Take a call's un-rotated keys and its values; return all keys, rotated, and values it may attend."""
        raw = k_BTNH.chunk(place.frames, dim=1)
        parts = (x.chunk(place.frames, dim=1) for x in (rotation.of_call(k_BTNH), v_BTNH))
        self.frames = [Frame(*part) for part in zip(*parts, strict=True)]
        slots = {run.slot + i: run.frame + i for run in place.runs for i in range(run.count)}
        self.written = {
            slot: replace(self.frames[i], k=raw[i]) if slot < self.moving_sink else self.frames[i]
            for slot, i in slots.items()
        }
        now = {**self.past, **self.written}
        seen = [now[slot].attended() for slot in range(place.filled)]
        keys = [frame.turned_k for frame in seen]
        if self.moving_sink and place.sink_start:
            sink = [frame.k for frame in seen[: self.moving_sink] if frame.k is not None]
            keys[: self.moving_sink] = [rotation.of_sink(torch.cat(sink, dim=1))]
        return torch.cat(keys, dim=1), torch.cat([frame.v for frame in seen], dim=1)
