"""The causal forward over a tree of Wan sub-modules (LongLive §3; Self-Forcing, arXiv 2506.08009).

The tree is ours (`wan.py`) or ComfyUI's `WanModel`. The forward calls only sub-modules that both have under one name,
so what ComfyUI does in its sub-modules (casts, offloading, LoRA, quantisation) keeps working.
Dimension key: B batch, F frames of one pass, T tokens of one pass, L text rows, D model width, N heads, H channels per
head, C latent channels.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import ConditioningError
from .attention import Attend, choose_attention
from .dtypes import choose_float
from .eight_bit import name_eight_bit_kernels
from .forms import choose_pointwise
from .fused import PLAIN, Addend, Modulation, Piece, Pointwise, add_gated, modulate
from .placement import Placement
from .rope import BASE, Rotation, make_table
from .wan import MODULATIONS, AttentionTree, BlockTree, Geometry, WanModel, WanTree


class Room(NamedTuple):
    """Where a pass writes its keys, rotated, and its values, and all [B, S, N, H] that it may attend."""

    k_pieces: list[Piece]
    v_pieces: list[Piece]
    keys_BSNH: Tensor
    values_BSNH: Tensor


class LayerKVCache(Protocol):
    """The keys and values of a video in one layer, as its self-attention sees them."""

    def find_room(self, place: Placement, tokens: int) -> Room | None:
        """Find room for the keys and values of a pass of so many tokens, if all are kept, and as they are."""
        ...

    def write(self, place: Placement, k_BTNH: Tensor, v_BTNH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Take the un-rotated keys of a pass, and its values, and store them, the keys rotated.

        Returns all keys, rotated, and all values that the pass may attend.
        """
        ...


class KVCache(Protocol):
    """The keys and values of a video: the sampler's `WindowKVCache`, or tuning's `GraphCache`."""

    @property
    def layers(self) -> Sequence[LayerKVCache]: ...


@dataclass(frozen=True, slots=True)
class TextKeys:
    """Cross-attention keys and values of one prompt, one pair [B, L, N, H] per layer. They hold for every pass."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def release(self) -> None:
        """Free the bytes now, even if something still refers to them."""
        for tensors in self.layers:
            free_tensors(tensors)


@dataclass(frozen=True, slots=True)
class LayerModulation:
    """What timesteps do in one layer, one row per frame [B, F, D]: shift, factor = 1 + scale, and gate."""

    shift_a: Tensor  # of attention
    factor_a: Tensor
    gate_a: Tensor
    shift_f: Tensor  # of the feed-forward
    factor_f: Tensor
    gate_f: Tensor


@dataclass(frozen=True, slots=True)
class Modulations:
    """What the timesteps of a pass do to its frames. They hold for every pass with these timesteps."""

    layers: tuple[LayerModulation, ...]
    time_BFD: Tensor  # the embedded timesteps, for the head


@dataclass(frozen=True, slots=True)
class CausalWan:
    """A Wan tree that sees the past through a KV cache."""

    tree: WanTree
    geometry: Geometry
    attend: Attend
    kernel: str  # the device and attention kernel, by name: another one rounds differently
    device: torch.device
    dtype: torch.dtype  # of activations, latents and the KV cache
    entry_dtype: torch.dtype  # of the patch embedding's input
    pointwise: Pointwise = PLAIN

    @classmethod
    def of_tree(cls, model: WanModel, *, quantised_attention: bool = False, joined: bool = False) -> "CausalWan":
        """Wrap our own tree, on its device and in its dtype. Raises ConfigError if 8-bit attention is missing.

        With `joined`, operations are joined on a CPU, too; they round less often, so the kernel has another name.
        """
        tree, weight = cast(WanTree, model), model.patch_embedding.weight
        attend, name = choose_attention(weight.device, weight.dtype, quantised=quantised_attention)
        linears = name_eight_bit_kernels(model, weight.device)
        pointwise = choose_pointwise(weight.device, weight.dtype, joined=joined)
        return cls(
            tree=tree,
            geometry=Geometry.of_tree(tree),
            attend=attend,
            kernel=" ".join(filter(None, [weight.device.type, name, *linears, pointwise.name])),
            device=weight.device,
            dtype=weight.dtype,
            entry_dtype=weight.dtype,
            pointwise=pointwise,
        )

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
        """Pass frames through the network; return their flow [B, F, C, H, W].

        Writes their keys and values into `cache` at `place`; the frames attend each other and what else it holds there.
        `modulations` are those of their timesteps, `rotation` is that of `place`. Without `with_flow` the pass ends
        once the last layer's keys and values are written, and returns None.
        """
        tree = self.tree
        u_BTD = tree.patch_embedding(rearrange(latents_BFCHW, "b f c h w -> b c f h w").to(self.entry_dtype))
        u_BTD = u_BTD.to(self.dtype).flatten(2).transpose(1, 2).contiguous()

        layers = zip(tree.blocks, modulations.layers, cache.layers, text.layers, strict=True)
        last = len(tree.blocks) - 1
        for i, (block, modulation, layer_cache, text_keys) in enumerate(layers):
            only_keys = i == last and not with_flow
            u_BTD = self.run_block(block, u_BTD, modulation, layer_cache, text_keys, place, rotation, only_keys)
        grid = self.geometry.grid(*latents_BFCHW.shape[-2:])
        return self.run_head(u_BTD, modulations.time_BFD, grid) if with_flow else None

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
        """Run one transformer layer. With `only_keys`, stop once keys and values are written; return `u` as given."""
        attention, m, form = block.self_attn, modulation, self.choose_form()
        u_BTD, y_BTD = form.add_and_normalise(u_BTD, None, block.norm1, Modulation(m.factor_a, m.shift_a))
        keys, values = self.write_keys(attention, y_BTD, cache, place, rotation)
        if only_keys:
            return u_BTD
        heads, table_T1P22 = self.geometry.num_heads, rotation.pass_T1P22
        q_BTNH = form.normalise_and_rotate(attention.norm_q, attention.q(y_BTD), table_T1P22, heads)
        y_BTD = attention.o(self.attend(q_BTNH, keys, values).flatten(-2))

        attention = block.cross_attn
        u_BTD, y_BTD = form.add_and_normalise(u_BTD, Addend(y_BTD, m.gate_a), block.norm3)
        q_BTNH = self.split_heads(attention.norm_q(attention.q(y_BTD)))
        y_BTD = attention.o(self.attend(q_BTNH, *text_keys).flatten(-2))

        u_BTD, y_BTD = form.add_and_normalise(u_BTD, Addend(y_BTD), block.norm2, Modulation(m.factor_f, m.shift_f))
        return add_gated(u_BTD, form.feed_forward(block.ffn, y_BTD), m.gate_f)

    def choose_form(self) -> Pointwise:
        """Choose the form of what is between matrices: the plain one if there may be gradients."""
        return PLAIN if torch.is_grad_enabled() else self.pointwise

    def write_keys(
        self,
        attention: AttentionTree,
        y_BTD: Tensor,
        cache: LayerKVCache,
        place: Placement,
        rotation: Rotation,
    ) -> tuple[Tensor, Tensor]:
        """Compute the keys and values of a pass and store them; return all keys, rotated, and values it may attend."""
        room, form, k_BTD = cache.find_room(place, y_BTD.shape[1]), self.choose_form(), attention.k(y_BTD)
        if room is None:
            k_BTNH = self.split_heads(attention.norm_k(k_BTD))
            return cache.write(place, k_BTNH, self.split_heads(attention.v(y_BTD)), rotation)
        form.normalise_and_write(attention.norm_k, k_BTD, rotation.pass_T1P22, room.k_pieces)
        form.project_and_write(attention.v, y_BTD, room.v_pieces)
        return room.keys_BSNH, room.values_BSNH

    def make_rotation(self, place: Placement, grid: tuple[int, int], moving_sink: int = 0) -> Rotation:
        """Make the rotary tables of a placement, and those of the sink if so many of its frames move there."""
        head_dim = self.geometry.head_dim
        sink_T1P22 = make_table(place.sink_start, moving_sink, grid, head_dim, self.device) if moving_sink else None
        pass_T1P22 = make_table(place.start, place.frames, grid, head_dim, self.device)
        return Rotation(pass_T1P22, sink_T1P22, self.choose_form().rotate)

    def make_modulations(self, timesteps_BF: Tensor) -> Modulations:
        """Make the modulations of frames with these timesteps, in all layers."""
        time_BFD = self.embed_time(timesteps_BF)
        shared_BF6D = self.tree.time_projection(time_BFD).unflatten(-1, (MODULATIONS, -1))
        return Modulations(tuple(self._make_modulation(block, shared_BF6D) for block in self.tree.blocks), time_BFD)

    def _make_modulation(self, block: BlockTree, shared_BF6D: Tensor) -> LayerModulation:
        rows_BF6D = block.modulation.to(self.device, self.dtype).unsqueeze(0) + shared_BF6D
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = rows_BF6D.unbind(2)
        return LayerModulation(shift_a, 1 + scale_a, gate_a, shift_f, 1 + scale_f, gate_f)

    def embed_time(self, timesteps_BF: Tensor) -> Tensor:
        """Embed timesteps [B, F] as [B, F, D]: the sinusoid on the device of the timesteps, the rest on the model's."""
        embedded = make_sinusoid(timesteps_BF.flatten(), self.geometry.freq_dim).to(self.device, self.dtype)
        return self.tree.time_embedding(embedded).unflatten(0, timesteps_BF.shape)

    def run_head(self, u_BTD: Tensor, e_BFD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Make the flow [B, F, C, H, W] of the last layer's tokens: the head makes patches, which are joined."""
        head, (pt, ph, pw) = self.tree.head, self.geometry.patch_size
        shift, scale = (head.modulation.to(u_BTD).unsqueeze(0) + e_BFD.unsqueeze(2)).unbind(2)
        patches = head.head(modulate(head.norm(u_BTD), shift, scale))
        return rearrange(
            patches,
            "b (f gh gw) (pt ph pw c) -> b (f pt) c (gh ph) (gw pw)",
            gh=grid[0], gw=grid[1], pt=pt, ph=ph, pw=pw,
        )  # fmt: skip

    def read_prompt(self, embedding_BLD: Tensor) -> TextKeys:
        """Compute the cross-attention keys and values of a prompt embedding.

        Pads it with zeros to `text_len` rows. The model attends the padding as well: it was trained so, and the biases
        make keys of it that are not zero. Raises ConditioningError for another width.
        """
        rows, width = embedding_BLD.shape[-2:]
        if width != self.geometry.text_dim:
            raise ConditioningError(
                f"the prompt embedding is {width} wide, but this model reads {self.geometry.text_dim}; "
                f"encode the prompt with the model's own text encoder (umT5-xxl for Wan2.1)"
            )
        padding = max(0, self.geometry.text_len - rows)
        padded = nn.functional.pad(embedding_BLD.to(self.device, self.dtype), (0, 0, 0, padding))
        return TextKeys(tuple(self.project_text(self.tree.text_embedding(padded))))

    def project_text(self, context_BLD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute each layer's keys and values [B, L, N, H] of embedded rows."""
        return [self._project_text(block.cross_attn, context_BLD) for block in self.tree.blocks]

    def _project_text(self, attention: AttentionTree, context_BLD: Tensor) -> tuple[Tensor, Tensor]:
        k_BLD, v_BLD = attention.norm_k(attention.k(context_BLD)), attention.v(context_BLD)
        return self.split_heads(k_BLD), self.split_heads(v_BLD)

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.geometry.num_heads, -1))

    def make_empty_token(self, batch: int) -> Tensor:
        """Make an empty tensor [B, 1, N, H]: a KV cache takes its shape, device and dtype from it."""
        shape = (batch, 1, self.geometry.num_heads, self.geometry.head_dim)
        return torch.empty(shape, device=self.device, dtype=self.dtype)


def make_sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Make the timestep embedding [n, width]: cosines, then sines, in float64 like the reference if the device can."""
    wide = choose_float(timesteps.device)
    half = width // 2
    exponent = torch.arange(half, dtype=wide, device=timesteps.device) / half
    angles = torch.outer(timesteps.to(wide), BASE**-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def free_tensors(tensors: tuple[Tensor, ...]) -> None:
    """Free the storages of tensors that we allocated ourselves; never give it a view of somebody else's tensor."""
    for tensor in tensors:
        with contextlib.suppress(RuntimeError):  # an error of a lost device must not hide the first error
            tensor.untyped_storage().resize_(0)
