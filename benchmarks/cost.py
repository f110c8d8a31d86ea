"""Count the work of a video at 832 x 480 on the meta device, and predict its time on graphics cards that are not here.

    python benchmarks/cost.py

Prints the tables of benchmarks/README.md. The limits in tests/unit/rollout/test_cost.py come from the same count.
"""

import sys
from collections.abc import Iterable

from cards import CARDS, Card
from eight_bit_kernels import attend_in_8_bit, use_counted_kitchen
from memory_budget import MemoryBudget
from true_size import (
    HEIGHT,
    WIDTH,
    count_decode,
    count_encode,
    count_network,
    count_text_encoder,
    make_latents,
    make_network,
    make_tiny_vae,
    make_vae,
)
from work_counter import Kind, Work

from longlive.config import Positions, RolloutConfig
from longlive.model.eight_bit import EightBit
from longlive.model.fused import PLAIN
from longlive.model.tiny_vae import TinyDecoder
from longlive.model.vae_streams import StreamingDecoder, StreamingEncoder
from longlive.units import PIXEL_FRAMES_PER_FRAME

# NVlabs/LongLive v1.0 (e52d9ef), unmodified, counted on meta tensors in November 2026 at the same shapes and rates.
# Milliseconds are on an H200, RTX 4090, RTX 5090. Its waits for the GPU (840 `.item()` a block) are not in them.
REFERENCE = (
    ("reference, LoRA 256 beside the weights, block", 155.7, 15760, 1905, 748, 589, 382, 1662, 1191),
    ("reference, LoRA merged, block", 141.5, 10960, 1905, 545, 450, 329, 1421, 1030),
    ("reference, unbounded, LoRA, block", 155.7, 16360, 2205, 972, 813, 435, "", ""),
    ("reference, LoRA, recache of 12 frames", 124.7, 3644, 381, 524, 416, 291, 1271, 918),
)
COLUMNS = ("TFLOP", "launches", "in fp64", "moved GB", "pointwise GB", *(f"{card.name} ms" for card in CARDS))
LINK_BYTES_PER_SECOND = 25e9  # of 16 lanes of PCIe 4


def describe_work(name: str, work: Work) -> tuple:
    times = (f"{1e3 * card.predict_seconds(work):.1f}" for card in CARDS)
    moved = (f"{work.num_bytes / 1e9:.1f}", f"{work.pointwise_bytes / 1e9:.1f}")
    return name, f"{work.flops / 1e12:.2f}", work.launches, work.launches_in_double, *moved, *times


def format_table(columns: Iterable[str], rows: Iterable[tuple]) -> str:
    lines = [columns, ["---"] * len([*columns]), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def describe_card(card: Card) -> tuple:
    return (
        card.name,
        *(card.tera_per_second[kind] for kind in Kind if kind in card.tera_per_second),
        (card.bytes_per_second / 1e12),
    )


def describe_transfers(config: RolloutConfig) -> list[tuple]:
    """Describe what crosses the link to the card for a block; the first row before it is computed."""
    latents = make_latents(config.block).nbytes
    pixels = config.block * PIXEL_FRAMES_PER_FRAME * HEIGHT * WIDTH * 3
    moved = {"noise, up": latents * len(config.steps), "latents, down": latents, "pixels as bytes, down": pixels}
    return [(name, f"{n / 1e6:.1f}", f"{1e3 * n / LINK_BYTES_PER_SECOND:.2f}") for name, n in moved.items()]


def describe_budget(name: str, budget: MemoryBudget) -> tuple:
    parts = (budget.weights, budget.kept, budget.busy, budget.total)
    return name, *(f"{num_bytes / 1e9:.2f}" for num_bytes in parts)


def main() -> None:
    model, vae, tiny_vae, config = make_network(), make_vae(), make_tiny_vae(), RolloutConfig()
    exact = count_network(model, config)
    with use_counted_kitchen():
        int8_model = make_network(EightBit.INT8)
        int8 = count_network(int8_model, config)
        int8_attention = count_network(make_network(EightBit.INT8, attend_in_8_bit), config)
    decoding = {n: count_decode(StreamingDecoder(vae, at_once=n), config.block) for n in (3, 2, 1)}
    tiny_decoding = count_decode(TinyDecoder(tiny_vae), config.block)
    plain = count_network(make_network(pointwise=PLAIN), config)
    unbounded = count_network(model, RolloutConfig(positions=Positions.UNBOUNDED))
    network_rows = [
        describe_work("four steps", exact.steps),
        describe_work("clean pass", exact.clean_pass),
        describe_work("**block**", exact.block),
        describe_work("block, unbounded", unbounded.block),
        describe_work("block, without Triton", plain.block),
        describe_work("block, INT8 linears", int8.block),
        describe_work("block, INT8 linears, 8-bit attention", int8_attention.block),
        describe_work("recache, sink kept", exact.recache),
        describe_work("recache, INT8 linears, 8-bit attention", int8_attention.recache),
        describe_work("keys and values of a prompt", exact.text),
        describe_work("umT5-xxl on a prompt", count_text_encoder()),
        *REFERENCE,
    ]
    vae_rows = [describe_work(f"decode of a block, {n} at once", work) for n, work in decoding.items()]
    vae_rows += [describe_work("decode of a block, tiny VAE", tiny_decoding)]
    vae_rows += [describe_work("encode of a block", count_encode(StreamingEncoder(vae), config.block))]
    all_rows = [
        describe_work("bf16, full VAE", exact.block + decoding[config.block]),
        describe_work("bf16, tiny VAE", exact.block + tiny_decoding),
        describe_work("INT8 linears, 8-bit attention, tiny VAE", int8_attention.block + tiny_decoding),
    ]
    tiny_budget = MemoryBudget.of_decoding(tiny_vae, tiny_decoding)
    budgets = {
        "sampling, bf16": MemoryBudget.of_sampling(model, exact),
        **{f"decoding, {n} at once": MemoryBudget.of_decoding(vae, work) for n, work in decoding.items()},
        "decoding, tiny VAE": tiny_budget,
        "sampling in INT8 and tiny VAE": MemoryBudget.of_sampling(int8_model, int8) + tiny_budget,
    }
    kinds = [kind.name.lower().replace("_", " ").replace("gemm", "GEMM") for kind in Kind if kind is not Kind.POINTWISE]
    tables = {
        "Network": format_table(["what", *COLUMNS], network_rows),
        "VAE": format_table(["what", *COLUMNS], vae_rows),
        "Network and VAE, a block": format_table(["what", *COLUMNS], all_rows),
        "Memory": format_table(
            ["what", "weights GB", "kept GB", "a pass GB", "together GB"],
            [describe_budget(*item) for item in budgets.items()],
        ),
        "Transfers of a block": format_table(["what", "MB", "ms at 25 GB/s"], describe_transfers(config)),
        "Rates": format_table(["card", *(f"{kind}, T/s" for kind in kinds), "TB/s"], map(describe_card, CARDS)),
    }
    sys.stdout.write("\n\n".join(f"{name}:\n\n{table}" for name, table in tables.items()) + "\n")


if __name__ == "__main__":
    main()
