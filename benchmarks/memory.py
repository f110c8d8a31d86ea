"""Measure whether memory stays constant over ten minutes of video, decoded by a tiny random VAE and written.

python benchmarks/memory.py [minutes]
"""

import sys
import tempfile
from pathlib import Path

import torch

from longlive.model.vae import WanVAE
from longlive.model.vae_streams import StreamingDecoder
from longlive.units import FPS
from longlive.video.writer import VideoWriter

WIDTH, ROWS, COLUMNS = 2, 2, 4  # base width; cells
BLOCK = 3


def main(minutes: float) -> None:
    torch.manual_seed(0)
    decoder = StreamingDecoder(WanVAE(WIDTH), at_once=BLOCK)
    sys.stdout.write("minutes   RSS MB   file MB\n")
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "long.mp4") as writer:
        due = 0
        while writer.num_frames < 60 * minutes * FPS:
            writer.write(decoder.push(torch.randn(1, BLOCK, 16, ROWS, COLUMNS)))
            if writer.num_frames >= 60 * due * FPS:
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
                sys.stdout.write(
                    f"{writer.num_frames / FPS / 60:7.2f} {measure_resident_mb():8.1f} {size / 1e6:9.2f}\n"
                )
                sys.stdout.flush()
                due += 1


def measure_resident_mb() -> float:
    """Measure the RAM of this process in MB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
