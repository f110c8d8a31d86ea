"""Runs of `longlive render` that tests of this folder share."""

from pathlib import Path

import av

STORY = "3f | a red fox\n# then\n6f | the red fox runs\n3f cut | the snow\n"

PROGRAM = (
    "import signal, sys; sys.modules['torchvision'] = None; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell starts jobs in the background without it
    "from longlive.cli.main import main; sys.exit(main())"
)


def make_command(folder: Path, weights: Path, pipeline: Path, name: str) -> list[str]:
    files = ["--weights", str(weights), "--pipeline", str(pipeline), "-o", str(folder / name)]
    size = ["--width", "48", "--height", "32", "--store", str(folder / "blocks")]
    return ["render", str(folder / "story.txt"), *files, *size, "--device", "cpu", "--dtype", "fp32"]


def count_pixel_frames(path: Path) -> int:
    with av.open(path) as video:
        return sum(1 for _ in video.decode(video=0))
