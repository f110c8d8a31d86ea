"""Teacher forcing: many passes of a video as one forward, under a mask that equals the cache (Self-Forcing §3).

A lesson is made by the very integers a rollout obeys (`window.py`, `replay.py`): which passes write the memory, in
which slots, and what each of them finds there. So the rolled window, the moved sink and the recache are what they are
in a rollout, exactly; a test holds the two together.

Dimension key: B videos, G groups (the frames of all passes, clean ones first), C channels, H rows and W columns of
cells, T tokens, S keys, N heads, L rows of all prompts of a lesson, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.causal import CausalWan, gated, modulated
from ...model.rope import rotate, table
from ...model.wan import MODULATIONS, BlockTree
from ...replay import Call, calls_before, needed
from ...timeline import Boundary
from ...window import Placement, Window

Switches = Sequence[tuple[int, Boundary]]
ROWS = 12  # of a prompt; a sentence of the grammar has 11 words at most
SCORE_OF_NOTHING = -1e4  # of a key that is not seen; finite, so that a bf16 sum stays a number


@dataclass(frozen=True, slots=True)
class Group:
    """The tokens of one frame in one pass."""

    frame: int  # of the video
    segment: int  # the prompt it is passed under
    position: int  # temporal, for the rotation


@dataclass(frozen=True, slots=True)
class Lesson:
    """Passes of one video: groups in order, clean ones first, and which keys each of them sees."""

    clean: tuple[Group, ...]
    noisy: tuple[Group, ...]
    moved: tuple[tuple[int, int], ...]  # (group, position) of keys seen at another position than their own
    sees: Tensor  # [groups, groups + moved], bool
    segments: int  # prompts

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.clean + self.noisy


@dataclass(frozen=True, slots=True)
class Sight:
    """What a lesson's tokens see, as tensors."""

    own_T1P22: Tensor  # rotations of the tokens
    seen_S1P22: Tensor  # and of the keys
    key_S: Tensor  # the token of each key
    scores_TS: Tensor
    text_scores_TL: Tensor


def lesson(config: RolloutConfig, switches: Switches, starts: Sequence[int], layers: int, *, gap: int = 0) -> Lesson:
    """The passes that the denoising of the blocks at `starts` depends on in a network of `layers`.

    `gap` frames are taken to lie between the sink and what follows it; with absolute positions they are seen.
    """
    window, block = Window(config.sink, config.recent), config.block
    clean: list[Group] = []
    noisy: list[Group] = []
    seen: dict[tuple[bool, int], list[tuple[int, int]]] = {}  # of each group: (clean group or -1 - noisy one, position)
    memory: dict[int, int] = {}  # slot: clean group

    def position(frame: int) -> int:
        return frame + gap if frame >= config.sink else frame

    def passed(place: Placement, segment: int, is_noisy: bool) -> None:
        groups = noisy if is_noisy else clean
        first = len(groups)
        frames = range(place.start, place.start + place.frames)
        groups += [Group(frame, segment, position(frame)) for frame in frames]
        written = {run.slot + i: first + run.frame + i for run in place.runs for i in range(run.count)}
        if is_noisy:
            written = {slot: -1 - group for slot, group in written.items()}
        now = memory | written
        sights = []
        for slot, group in now.items():
            if slot < place.filled:
                own = (noisy[-1 - group] if group < 0 else clean[group]).position
                is_moved = config.positions is Positions.UNBOUNDED and slot < config.sink and place.sink_start
                sights.append((group, place.sink_start + slot if is_moved else own))
        for group in range(first, len(groups)):
            seen[is_noisy, group] = sights
        if not is_noisy:
            memory.update(written)

    for step in _in_order(config, window, switches, starts, layers):
        if isinstance(step, Call):
            passed(step.place, step.segment, is_noisy=False)
        else:
            segment = max(i for i, (frame, _) in enumerate(switches) if frame <= step)
            passed(window.block(step, block), segment, is_noisy=True)

    def index(group: int) -> int:
        return group if group >= 0 else len(clean) - 1 - group

    groups = clean + noisy
    everything = {(index(group), where) for sights in seen.values() for group, where in sights}
    moved = sorted((group, where) for group, where in everything if where != groups[group].position)
    column = {(i, group.position): i for i, group in enumerate(groups)}
    column |= {key: len(groups) + i for i, key in enumerate(moved)}
    sees = torch.zeros(len(groups), len(column), dtype=torch.bool)
    for (is_noisy, group), sights in seen.items():
        for other, where in sights:
            sees[group + len(clean) * is_noisy, column[index(other), where]] = True
    return Lesson(tuple(clean), tuple(noisy), tuple(moved), sees, len(switches))


def _in_order(
    config: RolloutConfig, window: Window, switches: Switches, starts: Sequence[int], layers: int
) -> list[Call | int]:
    """The calls that blocks at `starts` depend on, and those starts themselves, in the order of time."""
    wanted: list[Call] = []
    for start in starts:
        past = [switch for switch in switches if switch[0] <= start]
        upcoming = window.block(start, config.block)
        wanted += needed(calls_before(config, past, start), upcoming, layers, made=None)
    last = max(starts)
    order: list[Call | int] = []
    for call in [*calls_before(config, [switch for switch in switches if switch[0] <= last], last)][::-1]:
        if not call.is_recache and call.place.start in starts:
            order.append(call.place.start)
        if call in wanted:
            order.append(call)
    return [*order, last]


def flow(
    wan: CausalWan, plan: Lesson, sight: Sight, latents_BGCHW: Tensor, timesteps_BG: Tensor, rows_BLD: Tensor
) -> Tensor:
    """The flow [B, G, C, H, W] of a lesson's noisy groups.

    `latents` and `timesteps` are those of all groups; `rows` are the prompts of its segments, `ROWS` of each.
    """
    tree, geometry = wan.tree, wan.geometry
    grid = geometry.grid(*latents_BGCHW.shape[-2:])
    tokens = grid[0] * grid[1]
    rows_BLD = torch.cat([rows_BLD, rows_BLD.new_zeros(len(rows_BLD), 1, geometry.text_dim)], dim=1)
    text = wan.read_rows(tree.text_embedding(rows_BLD))

    u_BTD = tree.patch_embedding(rearrange(latents_BGCHW, "b g c h w -> b c g h w")).flatten(2).transpose(1, 2)
    e_BGD = wan.time(timesteps_BG)
    modulation_BG6D = tree.time_projection(e_BGD).unflatten(-1, (MODULATIONS, -1))
    num_clean = len(plan.clean)
    for i, block in enumerate(tree.blocks):
        is_last = i == len(tree.blocks) - 1
        u_BTD = layer(wan, block, u_BTD, modulation_BG6D, sight, *text[i], num_clean * tokens if is_last else 0)
    return wan.flow(u_BTD, e_BGD[:, num_clean:], grid)


def layer(
    wan: CausalWan,
    block: BlockTree,
    u_BTD: Tensor,
    modulation_BG6D: Tensor,
    sight: Sight,
    text_k_BLNH: Tensor,
    text_v_BLNH: Tensor,
    first: int,
) -> Tensor:
    """One layer, for the tokens from `first` on; those before are only keys."""
    groups, tokens = modulation_BG6D.shape[1], u_BTD.shape[1] // modulation_BG6D.shape[1]
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (block.modulation.unsqueeze(0) + modulation_BG6D).unbind(2)
    attention = block.self_attn
    y_BTD = modulated(block.norm1(u_BTD), shift_a, scale_a)
    k_BTNH, v_BTNH = wan.heads(attention.norm_k(attention.k(y_BTD))), wan.heads(attention.v(y_BTD))
    k_BSNH, v_BSNH = rotate(k_BTNH[:, sight.key_S], sight.seen_S1P22), v_BTNH[:, sight.key_S]
    q_BTNH = rotate(wan.heads(attention.norm_q(attention.q(y_BTD[:, first:]))), sight.own_T1P22[first:])
    seen_BTD = attended(q_BTNH, k_BSNH, v_BSNH, sight.scores_TS[first:])
    asked = slice(first // tokens, groups)
    u_BTD = gated(u_BTD[:, first:], attention.o(seen_BTD), gate_a[:, asked])

    attention = block.cross_attn
    q_BTNH = wan.heads(attention.norm_q(attention.q(block.norm3(u_BTD))))
    u_BTD = u_BTD + attention.o(attended(q_BTNH, text_k_BLNH, text_v_BLNH, sight.text_scores_TL[first:]))
    return gated(
        u_BTD, block.ffn(modulated(block.norm2(u_BTD), shift_f[:, asked], scale_f[:, asked])), gate_f[:, asked]
    )


def sight_of(plan: Lesson, grid: tuple[int, int], head_dim: int, text_len: int) -> Sight:
    """The tensors of a lesson.

    One empty row stands for all rows a prompt leaves empty: by the logarithm of their number, which is exact.
    """
    tokens = grid[0] * grid[1]

    def turns(positions: Sequence[int]) -> Tensor:
        return torch.cat([table(position, 1, grid, head_dim, "cpu") for position in positions])

    groups = plan.groups
    own = [group.position for group in groups]
    seen = [*range(len(groups)), *(group for group, _ in plan.moved)]
    key_S = (torch.tensor(seen)[:, None] * tokens + torch.arange(tokens)).flatten()

    segments = torch.tensor([group.segment for group in groups])
    of_row = torch.arange(plan.segments * ROWS) // ROWS
    of_text = torch.where(segments[:, None] == of_row, 0.0, SCORE_OF_NOTHING)
    of_empty = torch.full((len(groups), 1), math.log(text_len - ROWS))
    return Sight(
        own_T1P22=turns(own),
        seen_S1P22=turns(own + [position for _, position in plan.moved]),
        key_S=key_S,
        scores_TS=torch.where(plan.sees, 0.0, SCORE_OF_NOTHING)
        .repeat_interleave(tokens, 0)
        .repeat_interleave(tokens, 1),
        text_scores_TL=torch.cat([of_text, of_empty], dim=1).repeat_interleave(tokens, 0),
    )


def attended(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, scores_TS: Tensor) -> Tensor:
    """Attention [B, T, D] with scores added. Written out: on a CPU, with a mask, twice as fast as PyTorch's own."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + scores_TS.to(q.dtype)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(-2)
