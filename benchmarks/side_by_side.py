"""Compare the time of our network with its bare calls, the reference, ComfyUI's core and diffusers.

    python benchmarks/side_by_side.py [--reference FOLDER] [--comfyui FOLDER] [--layers 2] [--cells 16 20] [--rounds 3]

The bare calls are the matrix products and attentions of our passes. The reference is a copy of NVlabs/LongLive, branch
v1.0 (e52d9ef), which needs `diffusers` and `peft`. ComfyUI is one of 0.30.0 or newer, with its requirements. Each is
left out if it is not there. All take turns in one process, on one thread of the CPU, with the same random weights of
the true width. Their times are those of the processor, so ratios hold on a busy machine.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from contenders import BareCalls, Contender, Ours, Task
from turns import PARTS, Times, describe_ms, describe_ratio, format_table, measure_in_turn

from longlive.model.causal import CausalWan
from longlive.model.dtypes import COMPUTE_DTYPES
from longlive.model.wan import Geometry

OURS, BARE, REFERENCE = "ours", "bare calls", "reference"
MERGED, HOST, DIFFUSERS = "reference, LoRA merged", "ComfyUI's core", "diffusers"


def make_geometry(layers: int) -> Geometry:
    """Make a network of the true width."""
    return Geometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=layers, freq_dim=256, text_dim=4096)


def iter_contenders(task: Task, reference: Path | None, comfyui: Path | None) -> Iterator[tuple[str, Contender | str]]:
    """Yield each by its name, or a sentence why it is left out."""
    yield OURS, Ours(task, CausalWan.of_tree(task.tree, joined=True))
    yield BARE, BareCalls(task)
    if reference:
        from reference_network import Reference

        yield REFERENCE, Reference(task, reference, with_lora=True)
        yield MERGED, Reference(task, reference, with_lora=False)
    else:
        yield REFERENCE, "give the folder of a copy with --reference"
    if comfyui:
        from host_network import HostNetwork

        yield HOST, HostNetwork(task, comfyui)
    else:
        yield HOST, "give the folder of ComfyUI with --comfyui"
    from diffusers_network import DiffusersNetwork, is_installed

    yield DIFFUSERS, DiffusersNetwork(task) if is_installed() else "install it"


def compare(task: Task, contenders: dict[str, Contender], rounds: int) -> str:
    """Let all take their turns; return the table, and how far the latents of others are from ours."""
    found = measure_in_turn([*contenders.values()], rounds)
    ours, others = found[0], dict(zip([*contenders][1:], found[1:], strict=True))
    columns = ["what", "ours, ms", *(f"of {name}" for name in others)]
    if REFERENCE in others:
        columns.append("bare calls of the reference")
    rows = (describe_part(part, ours, others) for part in PARTS)
    return f"{format_table(columns, rows)}\n\n{describe_differences(task, contenders)}"


def describe_part(part: str, ours: Times, others: dict[str, Times]) -> list[str]:
    ratios = [describe_ratio(ours[part], times[part]) if part in times else "" for times in others.values()]
    limit = [describe_ratio(others[BARE][part], others[REFERENCE][part])] if REFERENCE in others else []
    return [part, describe_ms(ours[part]), *ratios, *limit]


def describe_differences(task: Task, contenders: dict[str, Contender]) -> str:
    """Describe how far the latents of the first window are from ours, relative to their size."""
    blocks, ours = task.config.window // task.config.block, contenders[OURS].latents
    sentences = []
    for name, each in contenders.items():
        if name not in (OURS, BARE) and (count := min(blocks, len(each.latents))):
            found, expected = (torch.cat(latents[:count], 1).double() for latents in (each.latents, ours))
            sentences.append(f"{name} {float((found - expected).norm() / expected.norm()):.1e}")
    return f"Latents differ from ours, relative to their size: {', '.join(sentences) or 'nothing to compare'}."


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder of the reference")
    parser.add_argument("--comfyui", type=Path, help="folder of ComfyUI")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cells", type=int, nargs=2, default=(16, 20), help="rows and columns of latents")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    torch.set_num_threads(1)
    task = Task.make(make_geometry(options.layers), tuple(options.cells), dtype=COMPUTE_DTYPES[options.dtype])
    contenders: dict[str, Contender] = {}
    for name, each in iter_contenders(task, options.reference, options.comfyui):
        if isinstance(each, str):
            sys.stdout.write(f"Left out: {name}; {each}.\n")
        else:
            contenders[name] = each
    sys.stdout.write(f"\n{compare(task, contenders, options.rounds)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
