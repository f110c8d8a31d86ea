"""`longlive verify`: replay recorded runs of the reference and compare."""

import argparse
import logging
from pathlib import Path

from ..errors import WeightsError
from ..reference.verify import verify
from .terminal import FAILED, NOT_A_RECORDED_RUN, say


def add_parser(commands) -> None:
    check = commands.add_parser("verify", help="replay recorded runs of the reference and compare every number")
    check.set_defaults(run=run_verify, log_level=logging.WARNING)  # each file has its own line of output
    check.add_argument("files", type=Path, nargs="+")


def run_verify(options: argparse.Namespace) -> int:
    status = 0
    for path in options.files:
        try:
            verdict = verify(path)
        except WeightsError as error:
            say(error)
            status = NOT_A_RECORDED_RUN
            continue
        outcome = "failed" if verdict.failures else "reproduced"
        apart = f"largest difference {verdict.difference:.2g} in {verdict.where}" if verdict.difference else "equal"
        say(f"{path.name}: {outcome}, {apart}")
        for failure in verdict.failures:
            say(f"  {failure}")
        if verdict.failures:
            status = status or FAILED
    return status
