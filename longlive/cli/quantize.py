"""`longlive quantize`: weights with the linears of their layers in 8 bits, for ComfyUI and `render`."""

import argparse
import json
import logging
from pathlib import Path

from safetensors import SafetensorError

from ..errors import WeightsError
from ..model.eight_bit import EightBit
from ..weights.load import merge_weights
from ..weights.lora import prepare_lora
from ..weights.tensor_file import write_tensor_file
from ..weights.weights_file import WeightsFile, read_weights_file
from .lora_options import add_lora_options, check_lora_options

log = logging.getLogger(__name__)

FORMATS = {form.replace(" ", "-"): form for form in EightBit}
SUFFIX = ".safetensors"


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    quantize = commands.add_parser(
        "quantize", help="write weights in 8 bits, for ComfyUI and render", formatter_class=formatter
    )
    quantize.set_defaults(run=run_quantize)
    quantize.add_argument("weights", type=Path, help="longlive_base.pt, or a safetensors file")
    quantize.add_argument("output", type=parse_weights_path, help=f"{SUFFIX} file to write")
    quantize.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="int8: a scale for each output, RTX 20 and newer; int8-rotated: the same after a rotation that spreads "
        "large numbers; fp8-scaled: float8 with one scale, RTX 40 and newer",
    )
    add_lora_options(quantize)


def parse_weights_path(name: str) -> Path:
    """Parse the path of an output. Only safetensors files are overwritten."""
    if not name.lower().endswith(SUFFIX):
        raise argparse.ArgumentTypeError(f"{name} must end in {SUFFIX}")
    return Path(name)


def run_quantize(options: argparse.Namespace) -> int:
    check_lora_options(options)
    path = options.output
    if path.exists() and options.weights.exists() and path.samefile(options.weights):
        raise WeightsError(f"{path} would overwrite the weights it is made from; choose another name")
    file = read_weights_file(options.weights, ema=options.ema)
    lora = prepare_lora(options.lora, options.strength)
    state, _ = merge_weights(file, lora=lora, eight_bit=FORMATS[options.format])
    try:
        write_tensor_file(path, state, choose_metadata(file))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be written: {error}; free some space or choose another folder") from error
    before, after = (sum(tensor.nbytes for tensor in each.values()) / 1e6 for each in (file.tensors, state))
    log.info("%s: %.1f MB of weights, %.1f before", path, after, before)
    return 0


def choose_metadata(file: WeightsFile) -> dict[str, str]:
    """Keep the metadata of a file, and add the sizes that the JSON of a folder states and no tensor shows."""
    stated = {name: file.config[name] for name in ("num_heads", "text_len") if name in file.config}
    return ({"geometry": json.dumps(stated)} if stated else {}) | file.metadata
