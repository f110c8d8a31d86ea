"""The graph cache: a KV cache that is never overwritten, so that a graph may hold its keys and values.

The sampler's KV cache (`rollout/kv_cache.py`) is written in place. A graph cache is a value: each pass returns a new
one. `rollout/window.py` decides for both where frames are stored and what is attended.

Dimension key: B batch, T tokens of one frame, N heads, H channels per head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.causal import CausalWan, Room, TextKeys
from ..model.placement import Placement
from ..model.rope import Rotation
from ..rollout.window import Window


@dataclass(frozen=True, slots=True)
class CachedFrame:
    """Keys and values of one frame in one layer, [B, T, N, H] each."""

    turned_k: Tensor  # rotated at the frame's own position
    v: Tensor
    k: Tensor | None = None  # un-rotated, for a sink that moves
    link: "CachedFrame | None" = None  # the frame at the exit step, with its graph; the rest is of the clean pass

    def carrying_gradient(self) -> "CachedFrame":
        """Return these keys and values with the gradient of the link: a straight-through estimator (reference v1.0)."""
        if self.link is None or not torch.is_grad_enabled():
            return self
        k = None if self.k is None or self.link.k is None else attach_gradient(self.k, self.link.k)
        return CachedFrame(attach_gradient(self.turned_k, self.link.turned_k), attach_gradient(self.v, self.link.v), k)

    def linked_to(self, link: "CachedFrame | None") -> "CachedFrame":
        return replace(self, link=link)

    def zeroed(self) -> "CachedFrame":
        k = None if self.k is None else torch.zeros_like(self.k)
        return CachedFrame(torch.zeros_like(self.turned_k), torch.zeros_like(self.v), k)


def attach_gradient(value: Tensor, link: Tensor) -> Tensor:
    """Return `value` with the gradient of `link`."""
    return value + (link - link.detach())


LayerFrames = Mapping[int, CachedFrame]
"""The frames of a layer by slot."""


@dataclass(frozen=True, slots=True)
class GraphCache:
    """The frames of all layers, as a value."""

    layers: tuple[LayerFrames, ...]

    @classmethod
    def empty(cls, num_layers: int) -> "GraphCache":
        return cls(tuple({} for _ in range(num_layers)))

    def unlinked(self) -> "GraphCache":
        """Return the same values without their graph."""
        return GraphCache(
            tuple({slot: frame.linked_to(None) for slot, frame in layer.items()} for layer in self.layers)
        )

    def reset_to_zero_sink(self, sink: int) -> "GraphCache":
        """Return a cache that holds only the sink, all zeros: the reference's trainer keeps no more at a switch."""
        return GraphCache(tuple({slot: layer[slot].zeroed() for slot in range(sink)} for layer in self.layers))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the values by name, for a checkpoint."""
        return {
            f"{i}.{slot}.{name}": tensor
            for i, layer in enumerate(self.layers)
            for slot, frame in layer.items()
            for name, tensor in (("turned_k", frame.turned_k), ("v", frame.v), ("k", frame.k))
            if tensor is not None
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], num_layers: int) -> "GraphCache":
        """Undo `to_tensors`."""
        layers: list[dict[int, CachedFrame]] = [{} for _ in range(num_layers)]
        for name in tensors:
            i, slot, part = name.split(".")
            if part == "v":
                key = f"{i}.{slot}"
                frame = CachedFrame(tensors[f"{key}.turned_k"], tensors[name], tensors.get(f"{key}.k"))
                layers[int(i)][int(slot)] = frame
        return cls(tuple(layers))


class GraphPass:
    """One pass of a network with a graph cache: `run` writes to it, `make_cache` gives the new cache.

    Gradient checkpointing computes a layer twice. It attends the same past both times, because that is never changed.
    """

    def __init__(self, cache: GraphCache, window: Window, *, moves_sink: bool) -> None:
        self.moving_sink = window.sink if moves_sink else 0
        self.layers = [_LayerPass(layer, self.moving_sink) for layer in cache.layers]

    def run(self, wan: CausalWan, x_BFCHW: Tensor, timesteps_BF: Tensor, text: TextKeys, place: Placement) -> Tensor:
        """Pass frames through `wan`; return their flow [B, F, C, H, W]. What has a graph is made for this pass only."""
        moving = self.moving_sink if place.sink_start else 0
        rotation = wan.make_rotation(place, wan.geometry.grid(*x_BFCHW.shape[-2:]), moving)
        flow = wan.forward(x_BFCHW, text, self, place, wan.make_modulations(timesteps_BF), rotation)
        assert flow is not None
        return flow

    def make_cache(self, links: GraphCache | None = None) -> GraphCache:
        """Return the cache after this pass. What it wrote in a slot passes its gradient to that slot of `links`."""
        layers = []
        for i, layer in enumerate(self.layers):
            written = layer.written
            if links is not None:
                written = {slot: frame.linked_to(links.layers[i][slot]) for slot, frame in written.items()}
            layers.append({**layer.past, **written})
        return GraphCache(tuple(layers))


class _LayerPass:
    """One layer of a pass."""

    def __init__(self, past: LayerFrames, moving_sink: int) -> None:
        self.past, self.moving_sink = past, moving_sink
        self.frames: list[CachedFrame] = []  # of the pass, including those without a slot
        self.written: LayerFrames = {}

    def find_room(self, place: Placement, tokens: int) -> Room | None:
        """A graph may hold what is there, so nothing is written in place."""

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Take the un-rotated keys and the values of a pass; return all keys, rotated, and values it may attend."""
        raw = k_BTNH.chunk(place.frames, dim=1)
        parts = (x.chunk(place.frames, dim=1) for x in (rotation.rotate_pass(k_BTNH), v_BTNH))
        self.frames = [CachedFrame(*part) for part in zip(*parts, strict=True)]
        slots = {span.slot + i: span.frame + i for span in place.spans for i in range(span.count)}
        self.written = {
            slot: replace(self.frames[i], k=raw[i]) if slot < self.moving_sink else self.frames[i]
            for slot, i in slots.items()
        }
        now = {**self.past, **self.written}
        seen = [now[slot].carrying_gradient() for slot in sorted(place.attended_slots)]
        keys = [frame.turned_k for frame in seen]
        if self.moving_sink and place.sink_start:
            sink = [frame.k for frame in seen[: self.moving_sink] if frame.k is not None]
            keys[: self.moving_sink] = [rotation.rotate_sink(torch.cat(sink, dim=1))]
        return torch.cat(keys, dim=1), torch.cat([frame.v for frame in seen], dim=1)
