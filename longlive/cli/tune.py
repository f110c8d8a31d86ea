"""`longlive tune`: streaming long tuning of a model on its own long videos."""

import argparse
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from ..miniature.tuning import load_miniature_parts
from ..tuning.accelerator import make_accelerator
from ..tuning.config import read_config
from ..tuning.load import identify_files, load_parts
from ..tuning.run import run_tuning
from ..tuning.trainer import Trainer
from .terminal import choose_status
from .video_options import find_cache_folder

log = logging.getLogger(__name__)


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    tune = commands.add_parser(
        "tune", help="tune a model on its own long videos; run again to resume", formatter_class=formatter
    )
    tune.set_defaults(run=run_tune)
    tune.add_argument("config", type=Path, help="TOML file; see the examples in longlive/tuning/configs")
    tune.add_argument(
        "--folder", type=Path, help="for checkpoints, metrics, samples and adapter; default: named like the TOML"
    )


def run_tune(options: argparse.Namespace) -> int:
    config = read_config(options.config)
    folder = options.folder or Path(options.config.stem)
    accelerator = make_accelerator(config, folder)
    if config.model.miniature:
        parts = load_miniature_parts(config)
    else:
        parts = load_parts(config, folder / "embeddings", accelerator, find_cache_folder())
    trainer = Trainer(parts, identify_files(config, find_cache_folder()), accelerator)
    with (
        options.interrupts.hold_back(),
        tqdm(total=config.run.steps, unit="step", disable=None if accelerator.is_main_process else True) as bar,
    ):

        def watch(step: int, metrics: dict[str, float]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix({name: f"{metrics[name]:.3g}" for name in ("student", "critic") if name in metrics})
            caught = options.interrupts.caught
            is_interrupted = torch.tensor(float(bool(caught)), device=accelerator.device)
            if accelerator.reduce(is_interrupted, "sum"):  # all processes stop at the same step
                raise caught[-1] if caught else KeyboardInterrupt

        try:
            path = run_tuning(trainer, folder, watch=watch)
        except KeyboardInterrupt as interrupt:
            log.warning("interrupted: run the same command again to resume from the last checkpoint")
            return choose_status(interrupt)
    log.info("%s", path)
    return 0
