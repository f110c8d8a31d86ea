"""The KV cache of a video: a sink that stays and a window that rolls (LongLive §3.3).

`window.py` decides where a frame is stored and what is attended.
Dimension key: B batch, T tokens of one pass, S tokens attended, N heads, H channels per head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Positions, RolloutConfig, RolloutKind
from ..model.causal import Room, free_tensors
from ..model.fused import Piece
from ..model.placement import Placement
from ..model.rope import Rotation
from .rolling_window import make_window
from .window import Window


class WindowLayerKVCache:
    """Self-attention keys and values of one layer.

    Keys are stored rotated to the positions of their frames, so attention does not depend on the order of slots: new
    frames overwrite the oldest, and nothing is shifted. A block-wise pass attends one run of slots as they are; one of
    a rolling video, whose own keys are in no slot, attends a copy of what it attends. Slots are Python integers, so no
    pass waits for the GPU.
    """

    def __init__(self, capacity: int, like: Tensor) -> None:
        batch, _, heads, channels = like.shape
        self.k_BSNH = like.new_zeros(batch, capacity, heads, channels)
        self.v_BSNH = torch.zeros_like(self.k_BSNH)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.k_BSNH, self.v_BSNH

    def find_room(self, place: Placement, tokens: int) -> Room | None:
        """Find the slots of a pass, if all its frames have one and what it attends is in one piece."""
        if sum(span.count for span in place.spans) != place.frames or len(place.attended) != 1:
            return None
        per_frame = tokens // place.frames

        def find_tokens(first: int, frames: int) -> slice:
            return slice(first * per_frame, (first + frames) * per_frame)

        def list_pieces(x_BSNH: Tensor) -> list[Piece]:
            return [
                Piece(find_tokens(span.frame, span.count), x_BSNH[:, find_tokens(span.slot, span.count)])
                for span in place.spans
            ]

        k, v, attended = self.k_BSNH, self.v_BSNH, find_tokens(*place.attended[0])
        return Room(list_pieces(k), list_pieces(v), k[:, attended], v[:, attended])

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Store the un-rotated keys and the values of a pass; return all rotated keys and values that it may attend.

        Writing at the same place again replaces the block: its denoising steps and its clean pass share their slots.
        """
        k_rotated_BTNH = rotation.rotate_pass(k_BTNH)
        self.store(place, k_rotated_BTNH, v_BTNH)
        keys = list_attended(self.k_BSNH, place, k_rotated_BTNH)
        return join_tokens(keys), join_tokens(list_attended(self.v_BSNH, place, v_BTNH))

    def store(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor) -> None:
        """Store the keys and values of a pass as they are."""
        tokens = k_BTNH.shape[1] // place.frames
        for span in place.spans:
            source = slice(span.frame * tokens, (span.frame + span.count) * tokens)
            target = slice(span.slot * tokens, (span.slot + span.count) * tokens)
            self.k_BSNH[:, target], self.v_BSNH[:, target] = k_BTNH[:, source], v_BTNH[:, source]

    def move_sink(self, rotation: Rotation) -> None:
        """Rotate the keys of the sink to other positions, if it moves: here it does not."""


class UnboundedLayerKVCache(WindowLayerKVCache):
    """A cache whose sink moves along with the window, so that a video may have any length.

    Attention depends on differences of positions only. The reference's infinity variant gives sink and ring the
    positions 0..window-1 and rotates every key in every pass. Here the ring keeps its positions and the sink moves: its
    keys are also kept un-rotated, and are rotated to the positions just before the ring.
    """

    def __init__(self, capacity: int, like: Tensor, *, sink: int) -> None:
        super().__init__(capacity, like)
        self.sink_k_BSNH = self.k_BSNH[:, :sink].clone()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *super().tensors, self.sink_k_BSNH

    def find_room(self, place: Placement, tokens: int) -> Room | None:
        """Find the slots of a pass that does not write the sink: its keys are also kept un-rotated."""
        sink = self.sink_k_BSNH.shape[1] * place.frames // tokens  # frames
        return None if any(span.slot < sink for span in place.spans) else super().find_room(place, tokens)

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        tokens = k_BTNH.shape[1] // place.frames
        sink = self.sink_k_BSNH.shape[1]
        for span in place.spans:
            count = min(span.count * tokens, sink - span.slot * tokens)
            if count > 0:
                target = slice(span.slot * tokens, span.slot * tokens + count)
                self.sink_k_BSNH[:, target] = k_BTNH[:, span.frame * tokens : span.frame * tokens + count]
        return super().write(place, k_BTNH, v_BTNH, rotation)

    def move_sink(self, rotation: Rotation) -> None:
        """Rotate the keys of the sink to other positions."""
        self.k_BSNH[:, : self.sink_k_BSNH.shape[1]] = rotation.rotate_sink(self.sink_k_BSNH)


class RollingLayerKVCache(WindowLayerKVCache):
    """A cache whose sink is attended in another place by almost every pass: its keys are stored un-rotated alone.

    They are rotated for each pass that attends them, which copies what it attends anyway: its own frames have no slot.
    """

    def __init__(self, capacity: int, like: Tensor, *, sink: int) -> None:
        super().__init__(capacity, like)
        self.sink = sink  # tokens

    def find_room(self, place: Placement, tokens: int) -> Room | None:
        """Find the slots of a pass that neither writes nor attends the sink."""
        sink = self.sink * place.frames // tokens  # frames
        return None if any(slot < sink for slot in place.attended_slots) else super().find_room(place, tokens)

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        k_rotated_BTNH = rotation.rotate_pass(k_BTNH)
        self.store(place, k_rotated_BTNH, v_BTNH)
        if any(span.slot == 0 for span in place.spans):  # the first frames of the pass
            self.k_BSNH[:, : self.sink] = k_BTNH[:, : self.sink]
        keys = list_attended(self.k_BSNH, place, k_rotated_BTNH)
        if place.attended and place.attended[0].slot == 0:
            keys[:1] = [rotation.rotate_sink(keys[0][:, : self.sink]), keys[0][:, self.sink :]]
        return join_tokens(keys), join_tokens(list_attended(self.v_BSNH, place, v_BTNH))


class WindowKVCache:
    """The caches of all layers. Slots that no later block depends on may stay zero after a rebuild."""

    def __init__(
        self,
        config: RolloutConfig,
        num_layers: int,
        tokens_per_frame: int,
        like_B1NH: Tensor,
        *,
        window: Window | None = None,
    ) -> None:
        """Allocate the caches of a video, for another `window` than its config's if one is given."""
        self.window = window or make_window(config)
        self.sink_start = 0  # where a moving sink is; 0 is where its frames were written
        capacity, sink = self.window.size * tokens_per_frame, config.sink * tokens_per_frame
        self.moving_sink = config.sink if config.positions is Positions.UNBOUNDED else 0  # frames
        self.is_rolling = config.kind is RolloutKind.ROLLING
        self.layers: list[WindowLayerKVCache]
        if self.is_rolling:
            self.layers = [RollingLayerKVCache(capacity, like_B1NH, sink=sink) for _ in range(num_layers)]
        elif self.moving_sink:
            self.layers = [UnboundedLayerKVCache(capacity, like_B1NH, sink=sink) for _ in range(num_layers)]
        else:
            self.layers = [WindowLayerKVCache(capacity, like_B1NH) for _ in range(num_layers)]

    def count_moving(self, place: Placement) -> int:
        """Count the frames of the sink that have to move for a pass: all or none.

        Only where a sink moves at all, the pass attends it, and it is elsewhere. A pass that writes the sink writes it
        there itself. That of a rolling video is nowhere until a pass attends it.
        """
        is_there = place.sink_start == self.sink_start or any(slot < self.window.sink for slot in place.slots)
        if not self._is_sink_attended(place) or (is_there and not self.is_rolling):
            return 0
        return self.moving_sink

    def move_sink(self, place: Placement, rotation: Rotation) -> None:
        """Move a sink that moves to where a pass attends it: the passes of a block attend it in the same place."""
        if self.count_moving(place):
            for layer in self.layers:
                layer.move_sink(rotation)
        if self._is_sink_attended(place):
            self.sink_start = place.sink_start

    def _is_sink_attended(self, place: Placement) -> bool:
        return any(run.slot < self.window.sink for run in place.attended)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for layer in self.layers for tensor in layer.tensors)

    def release(self) -> None:
        """Free the bytes now: after an error, the frames of its traceback may still hold views of them."""
        for layer in self.layers:
            free_tensors(layer.tensors)


def list_attended(x_BSNH: Tensor, place: Placement, own_BTNH: Tensor) -> list[Tensor]:
    """List the slots of keys or values that a pass attends and, where they are in no slot, its own."""
    tokens = own_BTNH.shape[1] // place.frames
    kept = [x_BSNH[:, run.slot * tokens : (run.slot + run.count) * tokens] for run in place.attended]
    return [*kept, own_BTNH] if place.passing else kept


def join_tokens(pieces_BTNH: Sequence[Tensor]) -> Tensor:
    """Join keys or values along their tokens; a single piece is not copied."""
    return pieces_BTNH[0] if len(pieces_BTNH) == 1 else torch.cat(tuple(pieces_BTNH), dim=1)
