"""`longlive pairs`: have any language model write prompt pairs for tuning."""

import argparse
import logging
from pathlib import Path

from ..errors import DataError
from ..files import read_text
from ..tuning.prompt_pairs import TEMPLATE, read_answers, read_pairs, write_pairs, write_requests

log = logging.getLogger(__name__)


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    pairs = commands.add_parser("pairs", help="have a language model write prompt pairs for tuning")
    steps = pairs.add_subparsers(required=True, metavar="STEP")
    ask = steps.add_parser("request", help="write requests for a language model", formatter_class=formatter)
    ask.set_defaults(run=run_request)
    ask.add_argument("prompts", type=Path, help="text file, one prompt per line")
    ask.add_argument("--template", type=Path, help="text of a request, with {prompt} in it; built-in if not given")
    ask.add_argument("-o", "--output", type=Path, required=True, help="JSONL file of requests to write")
    read = steps.add_parser("read", help="check the answers and write prompt pairs", formatter_class=formatter)
    read.set_defaults(run=run_read)
    read.add_argument("requests", type=Path, help="JSONL file of requests")
    read.add_argument("answers", type=Path, help="JSONL file of answers, each with id and answer")
    read.add_argument("-o", "--output", type=Path, required=True, help="JSONL file of pairs to write")


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
