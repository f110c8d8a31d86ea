"""`longlive demo`: a video of five prompts by the miniature, twenty seconds long."""

import argparse
from pathlib import Path

from .render import add_parser as add_render
from .render import render_script
from .video_options import parse_mp4_path

DEMO_SCRIPT = """\
# only the first prompt says where the thing begins; each later prompt continues from its place
5.25s | a yellow ring moves right at night from the north west
3s | a yellow ring moves down at dusk
3s | a red ring moves down at dusk
3.75s | a red triangle moves left by day
5.25s | a blue square moves up at night
"""
ENLARGED = 6  # times


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    demo = commands.add_parser(
        "demo", help="make a video of five prompts with the miniature", formatter_class=formatter
    )
    demo.set_defaults(run=run_demo)
    demo.add_argument("-o", "--output", type=parse_mp4_path, default=Path("demo.mp4"), help="mp4 file to write")
    demo.add_argument("--seed", type=int, default=0, help="noise seed")


def run_demo(options: argparse.Namespace) -> int:
    """Render as `render --miniature` does, enlarged and without a store."""
    parser = argparse.ArgumentParser()
    add_render(parser.add_subparsers())
    render = parser.parse_args(["render", "", "--miniature", "--seed", str(options.seed), "-o", str(options.output)])
    render.store, render.enlarged = None, ENLARGED
    return render_script(render, DEMO_SCRIPT)
