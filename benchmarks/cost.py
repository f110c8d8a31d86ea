"""Count the work of a video at 832 x 480 on the meta device, and predict its time on graphics cards that are not here.

    python benchmarks/cost.py

Prints the tables of benchmarks/README.md. The limits in tests/unit/rollout/test_cost.py come from the same count.
"""

import sys
from dataclasses import replace
from itertools import starmap

from cards import CARDS, Card
from memory_budget import MemoryBudget
from predictions import TINY_VAE, count_modes
from true_size import (
    HEIGHT,
    WIDTH,
    NetworkWork,
    count_decode,
    count_encode,
    count_network,
    count_text_encoder,
    make_latents,
    make_network,
    make_tiny_vae,
    make_vae,
)
from turns import format_table
from work_counter import Kind, Work

from longlive.config import Positions, RolloutConfig
from longlive.model.eight_bit import EightBit
from longlive.model.fused import PLAIN
from longlive.model.speed import Speed
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


def list_network_rows(networks: dict[str, NetworkWork], config: RolloutConfig) -> list[tuple]:
    exact, fast, fastest = (networks[speed] for speed in Speed)
    plain = count_network(make_network(pointwise=PLAIN), config)
    unbounded = count_network(make_network(), replace(config, positions=Positions.UNBOUNDED))
    return [
        describe_work("four steps", exact.steps),
        describe_work("clean pass", exact.clean_pass),
        describe_work("**block**", exact.block),
        describe_work("block, unbounded", unbounded.block),
        describe_work("block, without Triton", plain.block),
        describe_work("block, 8-bit attention", fast.block),
        *(describe_work(f"block, linears {form}", networks[form].block) for form in EightBit),
        describe_work("block, INT8 linears, 8-bit attention", fastest.block),
        describe_work("recache, sink kept", exact.recache),
        describe_work("recache, INT8 linears, 8-bit attention", fastest.recache),
        describe_work("keys and values of a prompt", exact.text),
        describe_work("umT5-xxl on a prompt", count_text_encoder()),
        *REFERENCE,
    ]


def list_budgets(networks: dict[str, NetworkWork], decoding: dict[str, Work], config: RolloutConfig) -> list[tuple]:
    """List the memory of each part, and of parts together."""
    whole, int8_model = make_network(), make_network(EightBit.INT8)
    exact = MemoryBudget.of_sampling(whole, networks[Speed.EXACT])
    plain_model = make_network(pointwise=PLAIN)
    plain = MemoryBudget.of_sampling(plain_model, count_network(plain_model, config))
    int8 = MemoryBudget.of_sampling(int8_model, networks[EightBit.INT8])
    tiny = MemoryBudget.of_decoding(make_tiny_vae(), decoding[TINY_VAE])
    full = {n: MemoryBudget.of_decoding(make_vae(), work) for n, work in decoding.items() if n != TINY_VAE}
    at_once, *_, one_by_one = full.values()
    return [
        describe_budget("sampling, bf16", exact),
        describe_budget("sampling, bf16, without Triton", plain),
        describe_budget("sampling, INT8", int8),
        *(describe_budget(f"decoding, {name}", budget) for name, budget in full.items()),
        describe_budget("decoding, tiny VAE", tiny),
        describe_budget("bf16, full VAE, unloaded in turn", exact.unload_between(at_once)),
        describe_budget("bf16, full VAE, 1 at once, nothing unloaded", exact + one_by_one),
        describe_budget("bf16, full VAE, 3 at once, nothing unloaded", exact + at_once),
        describe_budget("bf16, tiny VAE, nothing unloaded", exact + tiny),
        describe_budget("**INT8, tiny VAE, nothing unloaded**", int8 + tiny),
        describe_budget("the same, if keys and values had 8 bits", (int8 + tiny).shrink_cache(int8_model, config)),
    ]


def main() -> None:
    vae, config = make_vae(), RolloutConfig()
    networks = count_modes(config)
    decoding = {f"{n} at once": count_decode(StreamingDecoder(vae, at_once=n), config.block) for n in (3, 2, 1)}
    decoding[TINY_VAE] = count_decode(TinyDecoder(make_tiny_vae()), config.block)
    vae_rows = [describe_work(f"decode of a block, {name}", work) for name, work in decoding.items()]
    vae_rows += [describe_work("encode of a block", count_encode(StreamingEncoder(vae), config.block))]
    full, tiny = next(iter(decoding.values())), decoding[TINY_VAE]
    pixels = {
        "bf16, full VAE (exact)": networks[Speed.EXACT].block + full,
        "bf16, 8-bit attention, full VAE (fast)": networks[Speed.FAST].block + full,
        "bf16, tiny VAE": networks[Speed.EXACT].block + tiny,
        "INT8 linears alone, tiny VAE (fastest without an attention kernel)": networks[EightBit.INT8].block + tiny,
        "INT8 linears, 8-bit attention, tiny VAE (fastest)": networks[Speed.FASTEST].block + tiny,
    }
    kinds = [kind.name.lower().replace("_", " ").replace("gemm", "GEMM") for kind in Kind if kind is not Kind.POINTWISE]
    tables = {
        "Network": format_table(["what", *COLUMNS], list_network_rows(networks, config)),
        "VAE": format_table(["what", *COLUMNS], vae_rows),
        "Network and VAE, a block": format_table(["what", *COLUMNS], starmap(describe_work, pixels.items())),
        "Memory": format_table(
            ["what", "weights GB", "kept GB", "a pass GB", "together GB"], list_budgets(networks, decoding, config)
        ),
        "Transfers of a block": format_table(["what", "MB", "ms at 25 GB/s"], describe_transfers(config)),
        "Rates": format_table(["card", *(f"{kind}, T/s" for kind in kinds), "TB/s"], map(describe_card, CARDS)),
    }
    sys.stdout.write("\n\n".join(f"{name}:\n\n{table}" for name, table in tables.items()) + "\n")


if __name__ == "__main__":
    main()
