"""The command line."""

import argparse
import logging
import sys

from .. import __version__
from ..errors import LongLiveError
from . import demo, evaluate, info, live, pairs, quantize, render, tune, verify
from .terminal import FAILED, Interrupts, PlainFormatter, choose_status, find_causes

COMMANDS = (render, live, demo, evaluate, tune, pairs, quantize, info, verify)

log = logging.getLogger("longlive")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = make_parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=options.log_level, handlers=[handler])
    options.interrupts = interrupts = Interrupts()
    try:
        with interrupts.catch():
            return options.run(options)
    except LongLiveError as error:
        for each in reversed([*find_causes(error)]):
            log.error("%s: %s", type(each).__name__, each)
        return FAILED
    except KeyboardInterrupt as interrupt:
        return choose_status(interrupt)
    except Exception:
        if not interrupts.caught:
            raise
        return choose_status(interrupts.caught[-1])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longlive", description="Long videos whose prompt changes while they run.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(log_level=logging.INFO)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
