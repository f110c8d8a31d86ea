"""The causal forward over a tree of Wan sub-modules (LongLive §3; Self-Forcing, arXiv 2506.08009).

The tree is ours (`wan.py`) or ComfyUI's `WanModel`: only sub-modules of the same names are called, so whatever its
owner does with weights (casts, offloading, LoRA, quantisation) goes on working.
Dimension key: B batch, F frames of one call, T tokens of one call, D model width, N heads, H channels per head.
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..cache import FrameMemory, LayerCache, TextMemory
from ..errors import ConditioningError
from ..precision import widest
from ..window import Placement
from .attention import Attend, attention_for
from .rope import BASE, Rotation, table
from .wan import MODULATIONS, AttentionTree, BlockTree, Geometry, WanModel, WanTree


@dataclass(frozen=True, slots=True)
class CausalWan:
    """A Wan tree that sees the past through a memory."""

    tree: WanTree
    geometry: Geometry
    attend: Attend
    kernel: str  # names what computes the attention and where; other kernels round differently
    device: torch.device
    dtype: torch.dtype  # of activations, latents and the memory
    entry_dtype: torch.dtype  # in which latents enter the patch embedding

    @classmethod
    def of_tree(cls, model: WanModel, *, quantised_attention: bool = False) -> "CausalWan":
        """Our own tree, on the device and in the dtype it is in. Raises ConfigError where SageAttention is missing."""
        tree, weight = cast(WanTree, model), model.patch_embedding.weight
        attend, name = attention_for(weight.device, weight.dtype, quantised=quantised_attention)
        return cls(
            tree=tree,
            geometry=Geometry.of_tree(tree),
            attend=attend,
            kernel=f"{weight.device.type} {name}",
            device=weight.device,
            dtype=weight.dtype,
            entry_dtype=weight.dtype,
        )

    def like_token(self, batch: int) -> Tensor:
        """An empty tensor [B, 1, N, H] of the kind a memory holds."""
        shape = (batch, 1, self.geometry.num_heads, self.geometry.head_dim)
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def read(self, embedding_BLD: Tensor) -> TextMemory:
        """The cross-attention keys and values of a prompt embedding; rows short of `text_len` are padded with zeros.

        Rows past a prompt's length are zero and attended like all others: their biases make them part of what the
        model was trained on. Raises ConditioningError for another width.
        """
        rows, width = embedding_BLD.shape[-2:]
        if width != self.geometry.text_dim:
            raise ConditioningError(
                f"the prompt embedding is {width} wide, but this model reads {self.geometry.text_dim}; "
                f"encode the prompt with the model's own text encoder (umT5-xxl for Wan2.1)"
            )
        padding = max(0, self.geometry.text_len - rows)
        padded = nn.functional.pad(embedding_BLD.to(self.device, self.dtype), (0, 0, 0, padding))
        return TextMemory(tuple(self.read_rows(self.tree.text_embedding(padded))))

    def read_rows(self, context_BLD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [B, L, N, H] of embedded rows."""
        return [self._text_keys(block.cross_attn, context_BLD) for block in self.tree.blocks]

    def _text_keys(self, attention: AttentionTree, context_BLD: Tensor) -> tuple[Tensor, Tensor]:
        k_BLD, v_BLD = attention.norm_k(attention.k(context_BLD)), attention.v(context_BLD)
        return self.heads(k_BLD), self.heads(v_BLD)

    def heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.geometry.num_heads, -1))

    def forward(
        self,
        latents_BFCHW: Tensor,
        timesteps_BF: Tensor,
        text: TextMemory,
        memory: FrameMemory,
        place: Placement,
        *,
        with_flow: bool = True,
    ) -> Tensor | None:
        """The flow [B, F, C, H, W] of a call's frames, which see each other and whatever `memory` holds at `place`.

        Writes the call's keys and values into `memory`. Without `with_flow` that is all it does: the last layer ends
        at its keys.
        """
        tree, geometry = self.tree, self.geometry
        grid = geometry.grid(*latents_BFCHW.shape[-2:])
        rotation = self.rotation(place, memory.window.sink, grid)

        u_BTD = tree.patch_embedding(rearrange(latents_BFCHW, "b f c h w -> b c f h w").to(self.entry_dtype))
        u_BTD = u_BTD.to(self.dtype).flatten(2).transpose(1, 2).contiguous()
        e_BFD = self.time(timesteps_BF)
        modulation_BF6D = tree.time_projection(e_BFD).unflatten(-1, (MODULATIONS, -1))

        last = len(tree.blocks) - 1
        for i, (block, cache, text_layer) in enumerate(zip(tree.blocks, memory.layers, text.layers, strict=True)):
            only_keys = i == last and not with_flow
            u_BTD = self._layer(block, u_BTD, modulation_BF6D, cache, text_layer, place, rotation, only_keys)
        return self.flow(u_BTD, e_BFD, grid) if with_flow else None

    def rotation(self, place: Placement, sink: int, grid: tuple[int, int]) -> Rotation:
        """The rotary tables of a call."""
        head_dim = self.geometry.head_dim
        moved_sink = table(place.sink_start, sink, grid, head_dim, self.device) if sink and place.sink_start else None
        return Rotation(table(place.start, place.frames, grid, head_dim, self.device), moved_sink)

    def time(self, timesteps_BF: Tensor) -> Tensor:
        """The embedding [B, F, D] of timesteps, on the model's device or where float64 is computed for it."""
        embedded = sinusoid(timesteps_BF.flatten(), self.geometry.freq_dim).to(self.device, self.dtype)
        return self.tree.time_embedding(embedded).unflatten(0, timesteps_BF.shape)

    def _layer(
        self,
        block: BlockTree,
        u_BTD: Tensor,
        modulation_BF6D: Tensor,
        cache: LayerCache,
        text: tuple[Tensor, Tensor],
        place: Placement,
        rotation: Rotation,
        only_keys: bool,
    ) -> Tensor:
        modulation = block.modulation.to(u_BTD).unsqueeze(0) + modulation_BF6D
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(2)

        attention = block.self_attn
        y_BTD = modulated(block.norm1(u_BTD), shift_a, scale_a)
        k_BTNH = self.heads(attention.norm_k(attention.k(y_BTD)))
        keys, values = cache.write(place, k_BTNH, self.heads(attention.v(y_BTD)), rotation)
        if only_keys:
            return u_BTD
        q_BTNH = rotation.of_call(self.heads(attention.norm_q(attention.q(y_BTD))))
        u_BTD = gated(u_BTD, attention.o(self.attend(q_BTNH, keys, values).flatten(-2)), gate_a)

        attention = block.cross_attn
        q_BTNH = self.heads(attention.norm_q(attention.q(block.norm3(u_BTD))))
        u_BTD = u_BTD + attention.o(self.attend(q_BTNH, *text).flatten(-2))

        return gated(u_BTD, block.ffn(modulated(block.norm2(u_BTD), shift_f, scale_f)), gate_f)

    def flow(self, u_BTD: Tensor, e_BFD: Tensor, grid: tuple[int, int]) -> Tensor:
        head, (pt, ph, pw) = self.tree.head, self.geometry.patch_size
        shift, scale = (head.modulation.to(u_BTD).unsqueeze(0) + e_BFD.unsqueeze(2)).unbind(2)
        patches = head.head(modulated(head.norm(u_BTD), shift, scale))
        return rearrange(
            patches,
            "b (f gh gw) (pt ph pw c) -> b (f pt) c (gh ph) (gw pw)",
            gh=grid[0], gw=grid[1], pt=pt, ph=ph, pw=pw,
        )  # fmt: skip


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """The timestep embedding [n, width]: cosines, then sines, in float64 (the reference's way) if the device has it."""
    wide = widest(timesteps.device)
    half = width // 2
    exponent = torch.arange(half, dtype=wide, device=timesteps.device) / half
    angles = torch.outer(timesteps.to(wide), BASE**-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulated(x_BTD: Tensor, shift_BFD: Tensor, scale_BFD: Tensor) -> Tensor:
    """x (1 + scale) + shift, a frame's row for all its tokens."""
    x_BFTD = x_BTD.unflatten(1, (shift_BFD.shape[1], -1))
    return torch.addcmul(shift_BFD.unsqueeze(2), x_BFTD, 1 + scale_BFD.unsqueeze(2)).flatten(1, 2)


def gated(x_BTD: Tensor, y_BTD: Tensor, gate_BFD: Tensor) -> Tensor:
    """x + gate y, a frame's row for all its tokens."""
    frames = gate_BFD.shape[1]
    x_BFTD, y_BFTD = (z.unflatten(1, (frames, -1)) for z in (x_BTD, y_BTD))
    return torch.addcmul(x_BFTD, y_BFTD, gate_BFD.unsqueeze(2)).flatten(1, 2)
