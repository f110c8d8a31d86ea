"""What is counted of the modes at 832 x 480, and what is predicted from it, by the names of measurements."""

from itertools import product

from cards import CARDS, Card
from eight_bit_kernels import attend_in_8_bit, use_counted_kitchen
from memory_budget import MemoryBudget
from modes import SUBSTITUTES, WITH_PIXELS
from true_size import NetworkWork, count_decode, count_network, make_network, make_tiny_vae, make_vae
from work_counter import Work

from longlive.config import Positions, RolloutConfig
from longlive.model.eight_bit import EightBit
from longlive.model.speed import Speed
from longlive.model.tiny_vae import TinyDecoder
from longlive.model.vae_streams import StreamingDecoder
from longlive.units import PIXEL_FRAMES_PER_FRAME

FULL_VAE, TINY_VAE = "full VAE", "tiny VAE"
LONG = f"long video, {FULL_VAE}"  # with unbounded positions


def count_modes(config: RolloutConfig) -> dict[str, NetworkWork]:
    with use_counted_kitchen():
        return {
            Speed.EXACT: count_network(make_network(), config),
            Speed.FAST: count_network(make_network(attend=attend_in_8_bit), config),
            **{form: count_network(make_network(form), config) for form in EightBit},
            Speed.FASTEST: count_network(make_network(EightBit.INT8, attend_in_8_bit), config),
        }


def count_decoders(config: RolloutConfig) -> dict[str, Work]:
    """Count the decoding of a block."""
    return {
        FULL_VAE: count_decode(StreamingDecoder(make_vae()), config.block),
        TINY_VAE: count_decode(TinyDecoder(make_tiny_vae()), config.block),
    }


def budget_modes(networks: dict[str, NetworkWork], decoders: dict[str, Work]) -> dict[str, MemoryBudget]:
    """Count the memory of the modes, and of decoding."""
    models = {Speed.EXACT: make_network(), **{form: make_network(form) for form in EightBit}}
    models |= {Speed.FAST: models[Speed.EXACT], Speed.FASTEST: models[EightBit.INT8]}
    budgets = {name: MemoryBudget.of_sampling(models[name], networks[name]) for name in networks}
    for name, vae in ((FULL_VAE, make_vae()), (TINY_VAE, make_tiny_vae())):
        budgets[name] = MemoryBudget.of_decoding(vae, decoders[name])
    return budgets


def predict() -> dict[str, list[str]]:
    """Predict the rows of `speed.py`, for each card."""
    config = RolloutConfig()
    networks, decoders = count_modes(config), count_decoders(config)
    budgets = budget_modes(networks, decoders)
    for known in (networks, budgets):
        known |= {name: known[same] for name, same in SUBSTITUTES.items()}
    rows: dict[str, list[str]] = {}
    for mode, work in networks.items():
        rows |= {
            f"{mode}: block, ms": [predict_ms(card, work.block) for card in CARDS],
            f"{mode}: four steps, ms": [predict_ms(card, work.steps) for card in CARDS],
            f"{mode}: clean pass, ms": [predict_ms(card, work.clean_pass) for card in CARDS],
            f"{mode}: recache, ms": [predict_ms(card, work.text + work.recache) for card in CARDS],
            f"{mode}: switch, ms": [predict_ms(card, work.text + work.recache + work.steps) for card in CARDS],
        }
    for mode, (vae, decoding) in product(WITH_PIXELS, decoders.items()):
        work, frames = networks[mode], PIXEL_FRAMES_PER_FRAME * config.block
        switch = work.text + work.recache + work.steps + decoding
        rows |= {
            f"{mode}, {vae}: frames a second": [
                f"{frames / card.predict_seconds(work.block + decoding):.1f}" for card in CARDS
            ],
            f"{mode}, {vae}: switch to new pixels, ms": [predict_ms(card, switch) for card in CARDS],
        }
    for vae, decoding in decoders.items():
        rows[f"{vae}: decode of a block, ms"] = [predict_ms(card, decoding) for card in CARDS]
    unbounded = count_network(make_network(), RolloutConfig(positions=Positions.UNBOUNDED))
    long_block = unbounded.block + decoders[FULL_VAE]
    rows[f"{LONG}: block and its pixels in each quarter, ms"] = [predict_ms(card, long_block) for card in CARDS]
    budgets |= {f"{mode}, {vae}": budgets[mode] + budgets[vae] for mode, vae in product(WITH_PIXELS, decoders)}
    for name, budget in budgets.items():
        rows[f"{name}: peak memory, GB"] = [f"{budget.total / 1e9:.2f}"] * len(CARDS)
    return rows


def predict_ms(card: Card, work: Work) -> str:
    return f"{1e3 * card.predict_seconds(work):.1f}"
