"""Teacher forcing: many passes of a video as one forward, under a mask that equals the cache (Self-Forcing §3).

A plan uses the integers of a rollout (`window.py`, `rolling_window.py`, `cache_passes.py`): which passes write the KV
cache, in which slots, and what each of them finds there. So the rolled window, the moved sink, the recache and the
joint pass over blocks in flight are exactly those of a rollout; a test compares the two.

Dimension key: B videos, G groups (the frames of all passes, clean ones first), C channels, H rows and W columns of
cells, T tokens, S keys, N heads, L rows of all prompts of a plan, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.causal import CausalWan, add_gated, modulate
from ...model.placement import Placement
from ...model.rope import make_table, rotate
from ...model.wan import MODULATIONS, BlockTree
from ...rollout.cache_passes import CachePass, CleanPass, choose_missing_passes, list_cache_passes
from ...rollout.rolling_window import make_window
from ...rollout.window import Window
from ...session.boundary import Boundary

Switches = Sequence[tuple[int, Boundary]]
ROWS = 12  # of a prompt; a sentence of the grammar has at most 11 words
MASKED_SCORE = -1e4  # of a masked key; finite, so that a bf16 sum stays finite


class NoisyPass(NamedTuple):
    """A pass over noisy frames: one block, or jointly all blocks in flight."""

    start: int
    frames: int


@dataclass(frozen=True, slots=True)
class FrameGroup:
    """The tokens of one frame in one pass."""

    frame: int  # of the video
    segment: int  # the prompt of the pass
    position: int  # temporal, for the rotation


@dataclass(frozen=True, slots=True)
class TeacherForcingPlan:
    """Passes of one video: frame groups in order, clean ones first, and the keys that each of them sees."""

    clean: tuple[FrameGroup, ...]
    noisy: tuple[FrameGroup, ...]
    moved: tuple[tuple[int, int], ...]  # (group, position) of keys that are seen at another position
    sees: Tensor  # [groups, groups + moved], bool
    segments: int  # prompts

    @property
    def groups(self) -> tuple[FrameGroup, ...]:
        return self.clean + self.noisy


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """The attention mask of a plan as tensors, with the rotations of its tokens and keys."""

    token_turns_T1P22: Tensor  # rotations of the tokens
    key_turns_S1P22: Tensor  # rotations of the keys
    key_S: Tensor  # the token of each key
    scores_TS: Tensor
    text_scores_TL: Tensor


def plan_teacher_forcing(
    config: RolloutConfig, switches: Switches, passes: Sequence[NoisyPass], layers: int, *, gap: int = 0
) -> TeacherForcingPlan:
    """Plan these noisy passes, which begin ever later, and the clean ones they depend on in a network of `layers`.

    `gap` is a number of frames between the sink and what follows it; it changes absolute positions.
    """
    window = make_window(config)
    clean: list[FrameGroup] = []
    noisy: list[FrameGroup] = []
    seen: dict[tuple[bool, int], list[tuple[int, int]]] = {}  # of each group: (clean group or -1 - noisy one, position)
    cache: dict[int, int] = {}  # slot: clean group

    def locate(frame: int) -> int:
        return frame + gap if frame >= config.sink else frame

    def add_pass(place: Placement, segment: int, is_noisy: bool) -> None:
        groups = noisy if is_noisy else clean
        first = len(groups)
        frames = range(place.start, place.start + place.frames)
        groups += [FrameGroup(frame, segment, locate(frame)) for frame in frames]
        written = {span.slot + i: first + span.frame + i for span in place.spans for i in range(span.count)}
        if is_noisy:
            written = {slot: -1 - group for slot, group in written.items()}
        now = cache | written
        keys = []
        for slot, group in now.items():
            if slot in place.attended_slots:
                own = (noisy[-1 - group] if group < 0 else clean[group]).position
                is_moved = config.positions is Positions.UNBOUNDED and slot < config.sink and place.sink_start
                keys.append((group, place.sink_start + slot if is_moved else own))
        if place.passing:
            keys += [(-1 - group if is_noisy else group, groups[group].position) for group in range(first, len(groups))]
        for group in range(first, len(groups)):
            seen[is_noisy, group] = keys
        if not is_noisy:
            cache.update(written)

    for each in _order_passes(config, window, switches, passes, layers):
        if isinstance(each, NoisyPass):
            segment = max(i for i, (frame, _) in enumerate(switches) if frame <= each.start)
            add_pass(window.place_block(*each), segment, is_noisy=True)
        else:
            add_pass(each.place, each.segment, is_noisy=False)

    def find_index(group: int) -> int:
        return group if group >= 0 else len(clean) - 1 - group

    groups = clean + noisy
    key_places = {(find_index(group), where) for keys in seen.values() for group, where in keys}
    moved = sorted((group, where) for group, where in key_places if where != groups[group].position)
    column = {(i, group.position): i for i, group in enumerate(groups)}
    column |= {key: len(groups) + i for i, key in enumerate(moved)}
    sees = torch.zeros(len(groups), len(column), dtype=torch.bool)
    for (is_noisy, group), keys in seen.items():
        for other, where in keys:
            sees[group + len(clean) * is_noisy, column[find_index(other), where]] = True
    return TeacherForcingPlan(tuple(clean), tuple(noisy), tuple(moved), sees, len(switches))


def _order_passes(
    config: RolloutConfig, window: Window, switches: Switches, passes: Sequence[NoisyPass], layers: int
) -> list[CachePass | NoisyPass]:
    """Order noisy passes, and the clean ones they depend on, by time."""
    wanted: list[CachePass] = []
    for noisy in passes:
        past = [switch for switch in switches if switch[0] <= noisy.start]
        place = window.place_block(*noisy)
        needed = place.attended_slots - place.slots
        wanted += choose_missing_passes(list_cache_passes(config, past, noisy.start), needed, layers, made=None)
    last = passes[-1].start
    order: list[CachePass | NoisyPass] = []
    for each in [*list_cache_passes(config, [switch for switch in switches if switch[0] <= last], last)][::-1]:
        if isinstance(each, CleanPass):
            order += [noisy for noisy in passes if noisy.start == each.place.start]
        if each in wanted:
            order.append(each)
    return [*order, *(noisy for noisy in passes if noisy.start == last)]


def predict_flow(
    wan: CausalWan,
    plan: TeacherForcingPlan,
    mask: AttentionMask,
    latents_BGCHW: Tensor,
    timesteps_BG: Tensor,
    rows_BLD: Tensor,
) -> Tensor:
    """Predict the flow [B, G, C, H, W] of a plan's noisy groups.

    `latents` and `timesteps` are those of all groups; `rows` are the prompts of the segments, `ROWS` of each.
    """
    tree, geometry = wan.tree, wan.geometry
    grid = geometry.grid(*latents_BGCHW.shape[-2:])
    tokens = grid[0] * grid[1]
    rows_BLD = torch.cat([rows_BLD, rows_BLD.new_zeros(len(rows_BLD), 1, geometry.text_dim)], dim=1)
    text = wan.project_text(tree.text_embedding(rows_BLD))

    u_BTD = tree.patch_embedding(rearrange(latents_BGCHW, "b g c h w -> b c g h w")).flatten(2).transpose(1, 2)
    e_BGD = wan.embed_time(timesteps_BG)
    modulation_BG6D = tree.time_projection(e_BGD).unflatten(-1, (MODULATIONS, -1))
    num_clean = len(plan.clean)
    for i, block in enumerate(tree.blocks):
        is_last = i == len(tree.blocks) - 1
        u_BTD = apply_layer(wan, block, u_BTD, modulation_BG6D, mask, *text[i], num_clean * tokens if is_last else 0)
    return wan.run_head(u_BTD, e_BGD[:, num_clean:], grid)


def apply_layer(
    wan: CausalWan,
    block: BlockTree,
    u_BTD: Tensor,
    modulation_BG6D: Tensor,
    mask: AttentionMask,
    text_k_BLNH: Tensor,
    text_v_BLNH: Tensor,
    first: int,
) -> Tensor:
    """Apply one layer to the tokens from `first` on; earlier tokens are only keys."""
    groups, tokens = modulation_BG6D.shape[1], u_BTD.shape[1] // modulation_BG6D.shape[1]
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (block.modulation.unsqueeze(0) + modulation_BG6D).unbind(2)
    attention = block.self_attn
    y_BTD = modulate(block.norm1(u_BTD), shift_a, scale_a)
    k_BTNH, v_BTNH = wan.split_heads(attention.norm_k(attention.k(y_BTD))), wan.split_heads(attention.v(y_BTD))
    k_BSNH, v_BSNH = rotate(k_BTNH[:, mask.key_S], mask.key_turns_S1P22), v_BTNH[:, mask.key_S]
    q_BTNH = rotate(wan.split_heads(attention.norm_q(attention.q(y_BTD[:, first:]))), mask.token_turns_T1P22[first:])
    seen_BTD = attend_masked(q_BTNH, k_BSNH, v_BSNH, mask.scores_TS[first:])
    asked = slice(first // tokens, groups)
    u_BTD = add_gated(u_BTD[:, first:], attention.o(seen_BTD), gate_a[:, asked])

    attention = block.cross_attn
    q_BTNH = wan.split_heads(attention.norm_q(attention.q(block.norm3(u_BTD))))
    u_BTD = u_BTD + attention.o(attend_masked(q_BTNH, text_k_BLNH, text_v_BLNH, mask.text_scores_TL[first:]))
    y_BTD = block.ffn(modulate(block.norm2(u_BTD), shift_f[:, asked], scale_f[:, asked]))
    return add_gated(u_BTD, y_BTD, gate_f[:, asked])


def make_mask(plan: TeacherForcingPlan, grid: tuple[int, int], head_dim: int, text_len: int) -> AttentionMask:
    """Make the attention mask of a plan.

    One empty row stands for all empty rows of a prompt: its score is the logarithm of their number, which is exact.
    """
    tokens = grid[0] * grid[1]

    def make_turns(positions: Sequence[int]) -> Tensor:
        return torch.cat([make_table(position, 1, grid, head_dim, "cpu") for position in positions])

    groups = plan.groups
    own = [group.position for group in groups]
    seen = [*range(len(groups)), *(group for group, _ in plan.moved)]
    key_S = (torch.tensor(seen)[:, None] * tokens + torch.arange(tokens)).flatten()

    segments = torch.tensor([group.segment for group in groups])
    of_row = torch.arange(plan.segments * ROWS) // ROWS
    of_text = torch.where(segments[:, None] == of_row, 0.0, MASKED_SCORE)
    of_empty = torch.full((len(groups), 1), math.log(text_len - ROWS))
    return AttentionMask(
        token_turns_T1P22=make_turns(own),
        key_turns_S1P22=make_turns(own + [position for _, position in plan.moved]),
        key_S=key_S,
        scores_TS=torch.where(plan.sees, 0.0, MASKED_SCORE).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1),
        text_scores_TL=torch.cat([of_text, of_empty], dim=1).repeat_interleave(tokens, 0),
    )


def attend_masked(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, scores_TS: Tensor) -> Tensor:
    """Attend [B, T, D] with added scores. On a CPU with a mask, this is twice as fast as PyTorch's own attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + scores_TS.to(q.dtype)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(-2)
