"""What a model remembers of a video, as tensors: keys and values of frames (LongLive §3.3) and of the text.

Where a frame lies and what is attended, `window.py` says.
Dimension key: B batch, T tokens of one call, S tokens attended, N heads, H channels per head.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .config import Positions, RolloutConfig
from .model.rope import Rotation
from .window import Placement, Window


class LayerCache(Protocol):
    """What a layer's self-attention asks of a memory."""

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Take a call's un-rotated keys and its values; return all keys, rotated, and values it may attend."""
        ...


class FrameMemory(Protocol):
    """What a network's forward asks of a memory: the sampler's (`Memory`), or one that a graph may hold (`tune/`)."""

    @property
    def window(self) -> Window: ...
    @property
    def layers(self) -> Sequence[LayerCache]: ...


class RollingKVCache:
    """Self-attention keys and values of one layer.

    Keys are stored rotated at the frames' own positions, so attention does not care in which slot a token lies: the
    ring is written in place and nothing is shifted, cloned or concatenated. Only integers decide what is written, so
    no call waits for the GPU.
    """

    def __init__(self, capacity: int, like: Tensor) -> None:
        batch, _, heads, channels = like.shape
        self.k_BSNH = like.new_zeros(batch, capacity, heads, channels)
        self.v_BSNH = torch.zeros_like(self.k_BSNH)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.k_BSNH, self.v_BSNH

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Store a call's un-rotated keys and its values; return all keys, rotated, and values it may attend.

        Writing at the same place again replaces the block: its denoising steps and its clean pass share their slots.
        """
        k_rotated_BTNH = rotation.of_call(k_BTNH)
        tokens = k_BTNH.shape[1] // place.frames
        for run in place.runs:
            source = slice(run.frame * tokens, (run.frame + run.count) * tokens)
            target = slice(run.slot * tokens, (run.slot + run.count) * tokens)
            self.k_BSNH[:, target], self.v_BSNH[:, target] = k_rotated_BTNH[:, source], v_BTNH[:, source]
        return self.k_BSNH[:, : place.filled * tokens], self.v_BSNH[:, : place.filled * tokens]


class UnboundedKVCache(RollingKVCache):
    """A cache whose sink walks along with the window, so that a video may last for ever.

    The reference's infinity variant gives sink and window the positions 0..window-1 for ever and rotates every key
    on every call. Only differences of positions reach the attention, so it is enough to move the sink: its keys are
    kept un-rotated too, and turned to lie just before the window.
    """

    def __init__(self, capacity: int, like: Tensor, *, sink: int) -> None:
        super().__init__(capacity, like)
        self.sink_k_BSNH = self.k_BSNH[:, :sink].clone()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *super().tensors, self.sink_k_BSNH

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        tokens = k_BTNH.shape[1] // place.frames
        sink = self.sink_k_BSNH.shape[1]
        for run in place.runs:
            count = min(run.count * tokens, sink - run.slot * tokens)
            if count > 0:
                target = slice(run.slot * tokens, run.slot * tokens + count)
                self.sink_k_BSNH[:, target] = k_BTNH[:, run.frame * tokens : run.frame * tokens + count]
        attended = super().write(place, k_BTNH, v_BTNH, rotation)
        if place.sink_start:
            self.k_BSNH[:, :sink] = rotation.of_sink(self.sink_k_BSNH)
        return attended


class Memory:
    """The caches of all layers. Zeros until written: a rebuild leaves untouched what nothing depends on."""

    def __init__(self, config: RolloutConfig, num_layers: int, tokens_per_frame: int, like_B1NH: Tensor) -> None:
        self.window = Window(config.sink, config.recent)
        capacity, sink = config.window * tokens_per_frame, config.sink * tokens_per_frame
        if config.positions is Positions.UNBOUNDED and sink:
            self.layers = [UnboundedKVCache(capacity, like_B1NH, sink=sink) for _ in range(num_layers)]
        else:
            self.layers = [RollingKVCache(capacity, like_B1NH) for _ in range(num_layers)]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for layer in self.layers for tensor in layer.tensors)

    def release(self) -> None:
        """Free the bytes now, whoever still holds a view: after an error, the frames of its traceback do."""
        for layer in self.layers:
            _free(layer.tensors)


@dataclass(frozen=True, slots=True)
class TextMemory:
    """Cross-attention keys and values of one prompt, one pair [B, rows, N, H] a layer. They depend on nothing else."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def release(self) -> None:
        """Free the bytes now, as `Memory.release`."""
        for tensors in self.layers:
            _free(tensors)


def _free(tensors: tuple[Tensor, ...]) -> None:
    """Give back storages that we allocated ourselves; never a view of another's."""
    for tensor in tensors:
        with contextlib.suppress(RuntimeError):  # a device that is gone must not hide the error that ended it
            tensor.untyped_storage().resize_(0)
