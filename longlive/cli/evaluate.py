"""`longlive evaluate`: measure a video, or what the miniature shows of the method."""

import argparse
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError
from ..evaluation.clip_score import ClipScorer
from ..evaluation.report import Report
from ..miniature.evaluation.blends import report_blends
from ..miniature.evaluation.comparison import report_comparison
from ..miniature.evaluation.miniature_report import report_miniature
from ..miniature.evaluation.rolling import report_rolling
from ..miniature.evaluation.words import evaluate_world_video
from ..miniature.files import load_miniature
from ..model.causal import CausalWan
from ..session.timeline import parse_timeline
from ..weights.load import load_model
from .terminal import say
from .video_options import read_script

SEEDS = 32  # as in the published tables


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    evaluate = commands.add_parser(
        "evaluate", help="measure a video, or what the miniature shows of the method", formatter_class=formatter
    )
    evaluate.set_defaults(run=run_evaluate)
    measured = evaluate.add_mutually_exclusive_group(required=True)
    measured.add_argument("video", type=Path, nargs="?", help="any video file")
    measured.add_argument(
        "--miniature", action="store_true", help="sample and measure the miniature: half a minute per seed"
    )
    evaluate.add_argument("--script", type=Path, help="the script the video was made with")
    evaluate.add_argument("--clip", type=Path, help="folder of a CLIP model, to score how well prompts are shown")
    evaluate.add_argument("--seeds", type=int, help=f"videos of the miniature per number; {SEEDS} if not given")
    evaluate.add_argument("--lora", type=Path, help="adapter for the miniature; measures before and after")
    evaluate.add_argument(
        "--rolling", type=Path, metavar="LORA", help="adapter of the miniature for rolling videos, to compare the kinds"
    )
    evaluate.add_argument(
        "--weights", type=Path, help="other weights of the miniature, such as a file of `longlive quantize`"
    )
    evaluate.add_argument(
        "--blends", action="store_true", help="of the miniature, compare only blends with a recache: 5 seconds per seed"
    )
    evaluate.add_argument("-o", "--output", type=Path, help="folder for report.md, report.json and plots")


def run_evaluate(options: argparse.Namespace) -> int:
    if options.miniature and (options.script or options.clip):
        raise ConfigError("--script and --clip belong to a video; leave them out with --miniature")
    own = options.lora or options.rolling or options.weights or options.blends
    if options.video and (options.seeds is not None or own):
        raise ConfigError(
            "--seeds, --lora, --rolling, --weights and --blends belong to --miniature; a video is measured as it is"
        )
    if options.rolling and (options.lora or options.weights or options.blends):
        raise ConfigError("--rolling compares two kinds of videos; leave out --lora, --weights and --blends")
    if options.lora and (options.weights or options.blends):
        raise ConfigError("--lora compares with the miniature's own weights; leave out --weights and --blends")
    report = measure_miniature(options) if options.miniature else measure_video(options)
    say(str(report).rstrip("\n"))
    if options.output:
        report.write(options.output)
    return 0


def measure_miniature(options: argparse.Namespace) -> Report:
    seeds = SEEDS if options.seeds is None else options.seeds
    if options.lora:
        return report_comparison(load_miniature(), load_miniature(lora=options.lora), seeds)
    if options.rolling:
        return report_rolling(load_miniature(), load_miniature(lora=options.rolling), seeds)
    miniature = load_miniature()
    if options.weights:
        tree, _ = load_model(options.weights, dtype=miniature.model.dtype)
        miniature = replace(miniature, model=CausalWan.of_tree(tree))
    return (report_blends if options.blends else report_miniature)(miniature, seeds)


def measure_video(options: argparse.Namespace) -> Report:
    segments = parse_timeline(read_script(options.script)) if options.script else ()
    return evaluate_world_video(options.video, segments, ClipScorer.of_folder(options.clip) if options.clip else None)
