"""The layers of the Wan2.1 VAE, and what they keep of a video between two passes.

A convolution reads a buffer: the frames it saw before, then the new ones, which the norm and the SiLU before it write
there. On an NVIDIA GPU the channels of a position lie next to each other in memory, as cuDNN and the norm's kernel want
them. Elsewhere the positions of a channel do, which is faster on a CPU.

Dimension key: B batch, C channels, T frames within a pass, H rows, W columns, N = H W.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LOOKBACK = 2  # frames before a frame that a convolution sees
LEAST_SQUARE = 1e-24  # least mean square to divide by, for a position that is zero


def has_channels_last(device: torch.device) -> bool:
    """Whether activations on a device are in `torch.channels_last_3d`. The meta device stands for an NVIDIA GPU."""
    return device.type == "meta" or (device.type == "cuda" and torch.version.hip is None)


def lay_out(weight: Tensor) -> Tensor:
    """Lay out a convolution's weight as its device wants it; without a copy if it is so already."""
    if not has_channels_last(weight.device) or weight.dim() not in (4, 5):
        return weight
    return weight.to(memory_format=torch.channels_last if weight.dim() == 4 else torch.channels_last_3d)


class Past:
    """The last frames that every convolution saw of one video; zeros before its beginning."""

    def __init__(self, frames_at_once: int | None = None) -> None:
        self.has_begun = False  # whether the first frame has passed
        self.frames_at_once = frames_at_once  # pixel frames that the costly last layers take; None for all
        self.seen: dict[nn.Module, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(frames.nbytes for frames in self.seen.values())

    def move(self, device: torch.device) -> None:
        self.seen = {layer: frames.to(device) for layer, frames in self.seen.items()}

    def join(
        self, layer: nn.Module, x_BCTHW: Tensor, norm: nn.Module | None = None, *, length: int = LOOKBACK
    ) -> Tensor:
        """Make what `layer` reads: the `length` frames it saw before `x`, then `x`, normalised and activated if `norm`.

        Keeps the last frames for next time. A video's first frame stays alone: a `CausalConv` needs no zeros.
        """
        batch, channels, frames, *size = x_BCTHW.shape
        seen_BCTHW = self.seen.get(layer)
        if seen_BCTHW is None:
            blank = length if self.has_begun or frames > 1 else 0
            seen_BCTHW = x_BCTHW.new_zeros(1).expand(batch, channels, blank, *size)
        if torch.is_grad_enabled():  # a graph takes nothing that is written in place
            joined_BCTHW = torch.cat([seen_BCTHW, F.silu(norm(x_BCTHW)) if norm else x_BCTHW], dim=2)
        else:
            layout = torch.channels_last_3d if has_channels_last(x_BCTHW.device) else torch.contiguous_format
            shape = batch, channels, seen_BCTHW.shape[2] + frames, *size
            joined_BCTHW = torch.empty(shape, dtype=x_BCTHW.dtype, device=x_BCTHW.device, memory_format=layout)
            before_BCTHW, now_BCTHW = joined_BCTHW.split([seen_BCTHW.shape[2], frames], dim=2)
            before_BCTHW.copy_(seen_BCTHW)
            if norm:
                assert isinstance(norm, Norm)
                norm.write_activated(x_BCTHW, now_BCTHW)
            else:
                now_BCTHW.copy_(x_BCTHW)
        missing = max(length - joined_BCTHW.shape[2], 0)  # zeros
        self.seen[layer] = F.pad(joined_BCTHW[:, :, -length:], (0, 0, 0, 0, missing, 0))  # a view keeps the pass alive
        return joined_BCTHW


class Residual(nn.Module):
    """Two causal convolutions beside a shortcut."""

    def __init__(self, width_in: int, width_out: int, **like) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            [
                Norm(width_in, 3, **like),
                nn.SiLU(),  # with the norm before it, in `Past.join`
                CausalConv(width_in, width_out, **like),
                Norm(width_out, 3, **like),
                nn.SiLU(),
                nn.Identity(),  # a dropout in training; keeps the released numbering
                CausalConv(width_out, width_out, **like),
            ]
        )
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv3d(width_in, width_out, 1, **like)

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        y_BCTHW = conv1(past.join(conv1, x_BCTHW, norm1))
        y_BCTHW = past.join(conv2, y_BCTHW, norm2)  # here, so that what it was made of is freed
        return conv2(y_BCTHW).add_(self.shortcut(x_BCTHW))


class Attention(nn.Module):
    """Single-head attention among the cells of each frame."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        self.norm = Norm(width, 2, **like)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1, **like)
        self.proj = nn.Conv2d(width, width, 1, **like)

    def forward(self, x_BCTHW: Tensor, _past: Past) -> Tensor:
        batch, _, _, height, _ = x_BCTHW.shape
        frames_BHWC = rearrange(self.norm(x_BCTHW), "b c t h w -> (b t) h w c")
        qkv_BCHW = self.to_qkv(frames_BHWC.movedim(-1, 1))
        q_BTNC, k_BTNC, v_BTNC = rearrange(qkv_BCHW, "(b t) c h w -> b t (h w) c", b=batch).chunk(3, dim=-1)
        cells_BTNC = F.scaled_dot_product_attention(q_BTNC, k_BTNC, v_BTNC)
        attended_BCHW = self.proj(rearrange(cells_BTNC, "b t (h w) c -> (b t) c h w", h=height))
        return x_BCTHW + rearrange(attended_BCHW, "(b t) c h w -> b c t h w", b=batch)


class Down(nn.Module):
    """Halve rows and columns and, with `in_time`, frames."""

    def __init__(self, width: int, *, in_time: bool, **like) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2, **like))
        self.time_conv = nn.Conv3d(width, width, (3, 1, 1), stride=(2, 1, 1), **like) if in_time else None

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        frames_BCHW = self.resample(rearrange(x_BCTHW, "b c t h w -> (b t) c h w"))
        x_BCTHW = rearrange(frames_BCHW, "(b t) c h w -> b c t h w", b=x_BCTHW.shape[0])
        if self.time_conv is None:
            return x_BCTHW
        joined_BCTHW = past.join(self.time_conv, x_BCTHW, length=1)
        return self.time_conv(joined_BCTHW) if past.has_begun else x_BCTHW


class Up(nn.Module):
    """Double rows and columns, halve the width and, with `in_time`, double frames.

    The first frame of a video is not doubled, and the convolution in time does not see it: the second frame finds
    zeros before itself.
    """

    def __init__(self, width: int, *, in_time: bool, **like) -> None:
        super().__init__()
        # Nearest cells are copies, exact in any dtype: the reference's conversion to float32 is not needed.
        upsample = nn.Upsample(scale_factor=2, mode="nearest-exact")
        self.resample = nn.Sequential(upsample, nn.Conv2d(width, width // 2, 3, padding=1, **like))
        self.time_conv = CausalConv(width, 2 * width, kernel=(3, 1, 1), **like) if in_time else None

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        batch = x_BCTHW.shape[0]
        if self.time_conv is not None and past.has_begun:
            frames_BCHW = split_pairs(self.time_conv(past.join(self.time_conv, x_BCTHW)))
        else:
            frames_BCHW = rearrange(x_BCTHW, "b c t h w -> (b t) c h w")
        return rearrange(self.resample(frames_BCHW), "(b t) c h w -> b c t h w", b=batch)


def split_pairs(pairs_BCTHW: Tensor) -> Tensor:
    """Turn the channels of two frames [B 2C T H W] into frames one after the other [(B T 2) C H W]."""
    if has_channels_last(pairs_BCTHW.device):
        return rearrange(pairs_BCTHW, "b (two c) t h w -> (b t two) h w c", two=2).movedim(-1, 1)
    return rearrange(pairs_BCTHW, "b (two c) t h w -> (b t two) c h w", two=2)


class CausalConv(nn.Conv3d):
    """A convolution that sees a frame and the two before it, and keeps rows and columns.

    Frames that are missing before the first one count as zeros; nothing is multiplied with them.
    """

    def __init__(self, width_in: int, width_out: int, *, kernel: tuple[int, int, int] = (3, 3, 3), **like) -> None:
        super().__init__(width_in, width_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2), **like)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self._conv_forward(x_BCTHW, self.weight[:, :, -x_BCTHW.shape[2] :], self.bias)


class Norm(nn.Module):
    """Divide every position by its root mean square over the channels, then scale each channel by its `gamma`."""

    def __init__(self, width: int, trailing_axes: int, **like) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *(1,) * trailing_axes, **like))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not has_channels_last(x_BCTHW.device):
            return self._scale(x_BCTHW)
        x_BTHWC, gamma_C = x_BCTHW.movedim(1, -1), self.gamma.to(x_BCTHW).flatten()
        return F.rms_norm(x_BTHWC, gamma_C.shape, gamma_C, LEAST_SQUARE).movedim(-1, 1)

    def write_activated(self, x_BCTHW: Tensor, out_BCTHW: Tensor) -> None:
        """Write the SiLU of the normalised `x` to `out`. Makes no graph."""
        if has_channels_last(x_BCTHW.device):
            torch.ops.aten.silu.out(self(x_BCTHW), out=out_BCTHW)
        else:
            F.silu(self._scale(x_BCTHW, out_BCTHW), inplace=True)

    def _scale(self, x_BCTHW: Tensor, out_BCTHW: Tensor | None = None) -> Tensor:
        """Normalise in steps: PyTorch's one call for it is slow on a CPU, above all if channels are not last."""
        mean_square = x_BCTHW.square().mean(dim=1, keepdim=True, dtype=torch.float32)
        scale_BCTHW = mean_square.clamp_min_(LEAST_SQUARE).rsqrt_().to(x_BCTHW.dtype)
        return torch.mul(x_BCTHW, scale_BCTHW, out=out_BCTHW).mul_(self.gamma.to(x_BCTHW).view(-1, 1, 1, 1))
