"""The sub-modules of a Wan2.1 network, named as in its released weights (Wan2.1, arXiv 2503.20314 §4.2).

Holds weights and shapes only; `causal.py` is the forward. ComfyUI's `WanModel` is a tree with the same names, so
code that reads a tree can read either.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import shorten

HEAD_DIM = 128  # of every released Wan model; not visible in the weights
TEXT_LEN = 512  # rows of a prompt embedding, of every released Wan model
MODULATIONS = 6  # shift, scale, gate for attention, then for the feed-forward
MAX_WIDTH, MAX_LAYERS, MAX_TEXT_LEN = 1 << 16, 256, 1 << 12  # far beyond any Wan model: 13824, 40 and 512 at 14B
PATCH_SIZE = (1, 2, 2)  # of every Wan2.1 model
LAYER = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of a Wan network. The defaults are those of the released text-to-video models."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int  # width of the timestep sinusoid
    text_dim: int  # width of a prompt embedding
    text_len: int = TEXT_LEN  # rows a shorter prompt embedding is padded to with zeros
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = PATCH_SIZE  # frames, rows, columns of latent cells in a token
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tokens in a frame of `height` by `width` latent cells."""
        return height // self.patch_size[1], width // self.patch_size[2]

    @classmethod
    def of_weights(
        cls, weights: Mapping[str, Tensor], *, num_heads: int | None = None, text_len: int = TEXT_LEN
    ) -> "Geometry":
        """Read every size from a state dict with released names; give `num_heads` if heads are not 128 wide.

        Raises KeyError for a tensor that is missing, ValueError for sizes that no Wan2.1 network has.
        """

        def read_shape(name: str, dims: int) -> tuple[int, ...]:
            shape = tuple(weights[name].shape)
            if len(shape) != dims or not all(0 < size <= MAX_WIDTH for size in shape):
                raise ValueError(f"{name} is {list(shape)}")
            return shape

        dim, in_dim, *patch_size = read_shape("patch_embedding.weight", 5)
        if tuple(patch_size) != PATCH_SIZE:
            raise ValueError(f"its patches are {patch_size}, expected {list(PATCH_SIZE)}")
        if num_heads is None and dim % HEAD_DIM:
            raise ValueError(f"it is {dim} wide, not a multiple of {HEAD_DIM}, and states no heads; give `num_heads`")
        num_heads = dim // HEAD_DIM if num_heads is None else num_heads
        if num_heads < 1 or dim % (2 * num_heads):
            raise ValueError(f"it is {dim} wide, which {num_heads} heads do not divide; give another `num_heads`")
        if not 0 < text_len <= MAX_TEXT_LEN:
            raise ValueError(f"its text has {text_len} rows, expected 1 to {MAX_TEXT_LEN}")
        return cls(
            dim=dim,
            ffn_dim=read_shape("blocks.0.ffn.0.weight", 2)[0],
            num_heads=num_heads,
            num_layers=count_layers(weights),
            freq_dim=read_shape("time_embedding.0.weight", 2)[1],
            text_dim=read_shape("text_embedding.0.weight", 2)[1],
            text_len=text_len,
            in_dim=in_dim,
            out_dim=read_shape("head.head.weight", 2)[0] // math.prod(patch_size),
            patch_size=PATCH_SIZE,
        )

    @classmethod
    def of_tree(cls, tree: "WanTree") -> "Geometry":
        """Read the sizes from the attributes of a tree, ours or ComfyUI's."""
        return cls(
            dim=tree.dim,
            ffn_dim=tree.ffn_dim,
            num_heads=tree.num_heads,
            num_layers=len(tree.blocks),
            freq_dim=tree.freq_dim,
            text_dim=tree.text_dim,
            text_len=tree.text_len,
            in_dim=tree.in_dim,
            out_dim=tree.out_dim,
            patch_size=tree.patch_size,
            eps=tree.eps,
        )


def count_layers(names: Iterable[str]) -> int:
    """Count the layers in tensor names. Raises ValueError unless they are numbered 0, 1, 2 and so on."""
    numbers = set()
    for name in names:
        if name.startswith("blocks."):
            number = LAYER.match(name)
            if not number:
                raise ValueError(f"{shorten(name)} is in no layer")
            numbers.add(int(number[1]))
    if len(numbers) > MAX_LAYERS:
        raise ValueError(f"it has {len(numbers)} layers, expected at most {MAX_LAYERS}")
    if missing := set(range(len(numbers))) - numbers:
        raise ValueError(f"it has a layer {max(numbers)}, but no layer {min(missing)}")
    return len(numbers)


Layer = Callable[[Tensor], Tensor]


class WanTree(Protocol):
    """What the causal forward needs of a network, ours or ComfyUI's: sizes and sub-modules."""

    dim: int
    ffn_dim: int
    num_heads: int
    freq_dim: int
    text_dim: int
    text_len: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, int, int]
    eps: float
    patch_embedding: Layer
    text_embedding: Layer
    time_embedding: Layer
    time_projection: Layer
    blocks: Sequence["BlockTree"]
    head: "HeadTree"


class BlockTree(Protocol):
    norm1: Layer
    self_attn: "AttentionTree"
    norm3: Layer
    cross_attn: "AttentionTree"
    norm2: Layer
    ffn: Layer
    modulation: Tensor


class AttentionTree(Protocol):
    q: Layer
    k: Layer
    v: Layer
    o: Layer
    norm_q: Layer
    norm_k: Layer


class HeadTree(Protocol):
    norm: Layer
    head: Layer
    modulation: Tensor


class WanModel(nn.Module):
    """All weights of a Wan2.1 text-to-video network. 825 tensors at 1.3B."""

    def __init__(self, geometry: Geometry, *, device=None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        g, like = geometry, {"device": device, "dtype": dtype}
        self.dim, self.ffn_dim, self.num_heads, self.freq_dim = g.dim, g.ffn_dim, g.num_heads, g.freq_dim
        self.text_dim, self.text_len, self.in_dim, self.out_dim = g.text_dim, g.text_len, g.in_dim, g.out_dim
        self.patch_size, self.eps = g.patch_size, g.eps

        self.patch_embedding = nn.Conv3d(g.in_dim, g.dim, g.patch_size, g.patch_size, **like)
        self.text_embedding = make_mlp(g.text_dim, g.dim, g.dim, nn.GELU("tanh"), **like)
        self.time_embedding = make_mlp(g.freq_dim, g.dim, g.dim, nn.SiLU(), **like)
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(g.dim, MODULATIONS * g.dim, **like))
        self.blocks = nn.ModuleList(WanBlock(g, **like) for _ in range(g.num_layers))
        self.head = Head(g, **like)


class WanBlock(nn.Module):
    """One transformer layer: modulated self-attention, cross-attention to the text, modulated feed-forward."""

    def __init__(self, geometry: Geometry, **like) -> None:
        super().__init__()
        g = geometry
        self.norm1 = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.self_attn = WanAttention(g, **like)
        self.norm3 = nn.LayerNorm(g.dim, g.eps, **like)
        self.cross_attn = WanAttention(g, **like)
        self.norm2 = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.ffn = make_mlp(g.dim, g.ffn_dim, g.dim, nn.GELU("tanh"), **like)
        self.modulation = nn.Parameter(torch.empty(1, MODULATIONS, g.dim, **like))


class WanAttention(nn.Module):
    """The projections of one attention; queries and keys are RMS-normalised over all heads at once."""

    def __init__(self, geometry: Geometry, **like) -> None:
        super().__init__()
        dim, eps = geometry.dim, geometry.eps
        self.num_heads = geometry.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, **like) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps, **like) for _ in range(2))


class Head(nn.Module):
    """The modulated projection from tokens back to patches."""

    def __init__(self, geometry: Geometry, **like) -> None:
        super().__init__()
        g = geometry
        self.norm = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.head = nn.Linear(g.dim, g.out_dim * g.patch_size[0] * g.patch_size[1] * g.patch_size[2], **like)
        self.modulation = nn.Parameter(torch.empty(1, 2, g.dim, **like))


def make_mlp(dim_in: int, dim_hidden: int, dim_out: int, activation: nn.Module, **like) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim_hidden, **like), activation, nn.Linear(dim_hidden, dim_out, **like))
