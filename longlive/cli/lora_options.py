"""The options of all commands that merge a LoRA into weights."""

import argparse
from pathlib import Path

from ..errors import ConfigError


def add_lora_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ema",
        action="store_true",
        default=None,
        help="use the averaged weights of a training checkpoint; those of Rolling Forcing are used anyway",
    )
    command.add_argument("--lora", type=Path, help="LongLive's lora.pt")
    command.add_argument("--strength", type=float, default=1.0, help="LoRA strength")


def check_lora_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for a strength without a LoRA."""
    if options.strength != 1 and not options.lora:
        raise ConfigError("--strength belongs to --lora; leave it out, or give the LoRA too")
