"""Films as one picture: a row a film, a column a moment."""

from collections.abc import Sequence
from pathlib import Path

import av
import torch
from einops import rearrange
from torch import Tensor

GAP = 2  # pixels of white between pictures


def save_strip(rows_FCHW: Sequence[Tensor], path: Path, *, every: int) -> None:
    """Write every `every`-th pixel frame of films [F, 3, H, W], -1..1, as a PNG, twice as large."""
    padded = [torch.nn.functional.pad(film[::every].clamp(-1, 1), (0, GAP, 0, GAP), value=1.0) for film in rows_FCHW]
    picture = torch.cat([rearrange(film, "f c h w -> h (f w) c") for film in padded])
    large = picture.repeat_interleave(2, 0).repeat_interleave(2, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.height, stream.width = large.shape[:2]
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(((large + 1) * 127.5).round().byte().numpy(), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
