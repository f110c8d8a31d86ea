"""The commands `longlive tune` and `longlive pairs`."""

import argparse
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import DataError
from ..files import read_text
from .config import read_config
from .data import TEMPLATE, read_answers, read_pairs, write_pairs, write_requests
from .load import load_parts
from .run import accelerator_of, run
from .tuning import Tuning

log = logging.getLogger(__name__)

INTERRUPTED = 130


def add_commands(commands) -> None:
    """Add them to a command line's parsers."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    tune = commands.add_parser(
        "tune", help="tune a model on its own long videos; the same command goes on", formatter_class=formatter
    )
    tune.set_defaults(run=run_tune)
    tune.add_argument("config", type=Path, help="a TOML file; examples lie in longlive/tune/configs")
    tune.add_argument("--folder", type=Path, help="for checkpoints, curve, samples and adapter; named as the file is")

    pairs = commands.add_parser("pairs", help="have prompt pairs written by a language model, and read them back")
    steps = pairs.add_subparsers(required=True, metavar="STEP")
    ask = steps.add_parser("request", help="write requests for any language model", formatter_class=formatter)
    ask.set_defaults(run=run_request)
    ask.add_argument("prompts", type=Path, help="a text file, one prompt a line")
    ask.add_argument("--template", type=Path, help="what is asked, with {prompt} in it; ours if left out")
    ask.add_argument("-o", "--output", type=Path, required=True, help="the JSONL to write")
    read = steps.add_parser("read", help="check the answers and write the pairs", formatter_class=formatter)
    read.set_defaults(run=run_read)
    read.add_argument("requests", type=Path, help="what was asked")
    read.add_argument("answers", type=Path, help="JSONL of id and answer")
    read.add_argument("-o", "--output", type=Path, required=True, help="the JSONL of pairs to write")


def run_tune(options: argparse.Namespace) -> int:
    config = read_config(options.config)
    folder = options.folder or Path(options.config.stem)
    accelerator = accelerator_of(config, folder)
    tuning = Tuning(load_parts(config, folder / "embeddings", accelerator), config, accelerator)
    with (
        asked_to_stop() as is_asked,
        tqdm(total=config.run.steps, unit="step", disable=None if accelerator.is_main_process else True) as bar,
    ):

        def watch(step: int, figures: dict[str, float]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix({name: f"{figures[name]:.3g}" for name in ("student", "critic") if name in figures})
            asked = torch.tensor(float(is_asked()), device=accelerator.device)
            if accelerator.reduce(asked, "sum"):  # all processes stop at the same step
                raise KeyboardInterrupt

        try:
            made = run(tuning, folder, watch=watch)
        except KeyboardInterrupt:
            log.warning("interrupted: the same command goes on from the last checkpoint")
            return INTERRUPTED
    log.info("%s", made)
    return 0


@contextmanager
def asked_to_stop() -> Iterator:
    """Whether Ctrl-C was pressed: between two steps nothing is lost. A second one stops at once."""
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def ask(*_) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(1)
        log.warning("stopping after this step; press again to stop at once")

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def run_request(options: argparse.Namespace) -> int:
    try:
        template = read_text(options.template) if options.template else TEMPLATE
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"the template {options.template} cannot be read ({reason}); give a text file in UTF-8"
        ) from error
    prompts = [pair.first for pair in read_pairs(options.prompts)]
    write_requests(prompts, options.output, template)
    log.info("%d requests: %s", len(prompts), options.output)
    return 0


def run_read(options: argparse.Namespace) -> int:
    pairs, refused = read_answers(options.requests, options.answers)
    for sentence in refused:
        log.warning("%s", sentence)
    write_pairs(pairs, options.output)
    log.info("%d pairs, %d answers refused: %s", len(pairs), len(refused), options.output)
    return 0
