"""What a model remembers of a video: a sink that stays, a window that rolls, the text (LongLive §3.1, §3.3).

Integers first: `Window` says in frames where a call's frames lie and what they may attend; the caches obey it.
Dimension key: B batch, T tokens of one call, S tokens attended, N heads, H channels per head.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from .config import Positions, RolloutConfig
from .model.rope import Rotation


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive frames of a call that lie in consecutive slots."""

    frame: int  # first frame, counted within the call
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the frames of one call lie in the window, and what they may attend. Counted in frames."""

    start: int  # temporal position of the call's first frame
    frames: int
    runs: tuple[Run, ...]  # what is written; frames in no run are only queries
    filled: int  # slots 0..filled are attended
    sink_start: int  # unbounded positions: temporal position of slot 0, so that the window never widens

    @property
    def slots(self) -> set[int]:
        return set(chain.from_iterable(range(run.slot, run.slot + run.count) for run in self.runs))


@dataclass(frozen=True, slots=True)
class Window:
    """`sink` slots for the first frames of a video, then a ring of `recent` slots.

    A frame's slot follows from its number alone, so a rebuilt memory holds every frame where it lay before.
    """

    sink: int
    recent: int

    @property
    def size(self) -> int:
        return self.sink + self.recent

    def slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.recent

    def frames_in_order(self, end: int) -> list[int]:
        """The slots of a video of `end` frames in the order of time: sink, then oldest to newest."""
        oldest = max(self.sink, end - self.recent)
        return [*range(min(self.sink, end)), *(self.slot(frame) for frame in range(oldest, end))]

    def block(self, start: int, frames: int) -> Placement:
        """A block: it replaces the oldest frames of the ring, and itself when it is passed again."""
        return self._place(start, frames, [self.slot(start + frame) for frame in range(frames)])

    def recache(self, end: int, *, renew: bool, whole: bool = False) -> Placement:
        """The newest frames of a video of `end`, to be remembered under a new prompt (§3.1).

        While the window reaches back to the first frame everything is rewritten. Beyond, the sink is kept unless
        `renew`ed by the oldest frames of the window. Those oldest frames are dead work for a kept sink (their keys
        are never stored); `whole` passes them all the same, as the reference does.
        """
        if end <= self.size:
            return self._place(0, end, list(range(end)))
        ring = [self.slot(frame) for frame in range(end - self.recent, end)]
        if renew:
            return self._place(end - self.size, self.size, [*range(self.sink), *ring])
        unstored = self.sink if whole else 0
        return self._place(end - self.recent - unstored, self.recent + unstored, [None] * unstored + ring)

    def _place(self, start: int, frames: int, slots: list[int | None]) -> Placement:
        runs: list[Run] = []
        for frame, slot in enumerate(slots):
            if slot is None:
                continue
            last = runs[-1] if runs else None
            if last and (last.frame + last.count, last.slot + last.count) == (frame, slot):
                runs[-1] = Run(last.frame, last.slot, last.count + 1)
            else:
                runs.append(Run(frame, slot, 1))
        end = start + frames
        return Placement(start, frames, tuple(runs), min(end, self.size), max(0, end - self.size))


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
            free(layer.tensors)


@dataclass(frozen=True, slots=True)
class TextMemory:
    """Cross-attention keys and values of one prompt, one pair [B, rows, N, H] a layer. They depend on nothing else."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def release(self) -> None:
        """Free the bytes now, as `Memory.release`."""
        for tensors in self.layers:
            free(tensors)


def free(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        tensor.untyped_storage().resize_(0)
