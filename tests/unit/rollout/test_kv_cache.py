"""The ring and its sink, as tensors."""

import pytest
import torch
import torch.nn.functional as F

from longlive.config import Positions, RolloutConfig
from longlive.model import rope
from longlive.model.rope import Rotation
from longlive.rollout.kv_cache import WindowKVCache


@pytest.mark.parametrize("positions", list(Positions))
def test_law_2_attention_through_the_ring_equals_attention_under_the_window_mask(positions):
    """Block by block, the cache gives what attention to all resident keys at their positions gives."""
    torch.manual_seed(0)
    sink, recent, block, frames, grid, heads, channels = 3, 9, 3, 30, (2, 1), 2, 8
    tokens = grid[0] * grid[1]
    q, k, v = (torch.randn(2, frames * tokens, heads, channels) for _ in range(3))
    config = RolloutConfig(window=sink + recent, sink=sink, block=block, positions=positions)
    cache = WindowKVCache(config, 1, tokens, torch.empty(2, 1, heads, channels))

    def tokens_of(x: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        return x.unflatten(1, (frames, tokens))[:, chosen].flatten(1, 2)

    def turned(x: torch.Tensor, positions: list[int]) -> torch.Tensor:
        tables = [rope.make_table(position, 1, grid, channels, "cpu") for position in positions]
        return rope.rotate(x, torch.cat(tables))

    def attention(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    for start in range(0, frames, block):
        end, place, own = start + block, cache.window.place_block(start, block), list(range(start, start + block))
        moved = rope.make_table(place.sink_start, sink, grid, channels, "cpu") if place.sink_start else None
        rotation = Rotation(rope.make_table(start, block, grid, channels, "cpu"), moved)
        cache.move_sink(place, rotation)
        keys, values = cache.layers[0].write(place, tokens_of(k, own), tokens_of(v, own), rotation)
        streamed = attention(rotation.rotate_pass(tokens_of(q, own)), keys, values)

        seen = [frame for frame in range(end) if frame < sink or frame >= end - recent]
        at = list(range(len(seen))) if positions is Positions.UNBOUNDED else seen
        masked = attention(turned(tokens_of(q, own), at[-block:]), turned(tokens_of(k, seen), at), tokens_of(v, seen))
        torch.testing.assert_close(streamed, masked, rtol=1e-4, atol=1e-5)
