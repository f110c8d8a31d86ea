"""Attack everything that reads what a user, a disk or a stranger may have made.

python tests/fuzz/fuzz.py                                  all inputs; the table goes into docs/reliability.md
python tests/fuzz/fuzz.py --only "session files"           one target
python tests/fuzz/fuzz.py --only "session files" --input 7 one input again
"""

import argparse
import faulthandler
import logging
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("..", "", "unit", "host")]

from harness import SEED, Outcomes, attack_all  # noqa: E402
from reliability import make_table, write_table  # noqa: E402
from targets import TARGETS  # noqa: E402

log = logging.getLogger("fuzz")


def main() -> int:
    options = make_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    logging.getLogger("longlive").setLevel(logging.CRITICAL)  # it says thousands of times what we made wrong
    faulthandler.enable()
    torch.set_num_threads(1)
    targets = [target for target in TARGETS if options.only in (None, target.name)]
    found: dict[str, Outcomes] = {}
    for target in targets:
        count = round(target.inputs * options.share)
        numbers = range(count) if options.input is None else [options.input]
        begin = time.monotonic()
        outcomes = found[target.name] = attack_all(target, numbers, options.seed)
        seconds = time.monotonic() - begin
        log.info(
            "%-28s %6d inputs, %6d right, %6d refused, %4d unclear, %5.0f s",
            target.name, outcomes.inputs, outcomes.right, outcomes.refused, len(outcomes.unclear), seconds,
        )  # fmt: skip
        for line in outcomes.unclear:
            log.info("  %s", line)
    unclear = sum(len(outcomes.unclear) for outcomes in found.values())
    if options.only is None and options.share == 1:
        write_table("fuzz", count_outcomes(found))
    return 1 if unclear else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", help="the name of one target")
    parser.add_argument("--input", type=int, help="the number of one input")
    parser.add_argument("--share", type=float, default=1, help="of the inputs of each target")
    return parser


def count_outcomes(found: dict[str, Outcomes]) -> str:
    rows = [[name, o.inputs, o.right, o.refused, len(o.unclear)] for name, o in found.items()]
    rows.append(["all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    return make_table(["target", "inputs", "right result", "one clear error", "unclear"], rows)


if __name__ == "__main__":
    sys.exit(main())
