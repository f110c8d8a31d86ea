"""Saves clips as one picture: one row per clip, one column per moment."""

from collections.abc import Sequence
from pathlib import Path

import av
import torch
from einops import rearrange
from torch import Tensor

GAP = 2  # white pixels between pictures


def save_strip(rows_FCHW: Sequence[Tensor], path: Path, *, every: int) -> None:
    """Save every `every`-th pixel frame of clips [F, 3, H, W], -1..1, as a PNG of twice the size."""
    padded = [torch.nn.functional.pad(clip[::every].clamp(-1, 1), (0, GAP, 0, GAP), value=1.0) for clip in rows_FCHW]
    picture = torch.cat([rearrange(clip, "f c h w -> h (f w) c") for clip in padded])
    large = picture.repeat_interleave(2, 0).repeat_interleave(2, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.height, stream.width = large.shape[:2]
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(((large + 1) * 127.5).round().byte().numpy(), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
