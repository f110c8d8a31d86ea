"""Limits on what a block of a long video costs at 832 x 480, counted at true size; times are predicted from that."""

from functools import cache

import pytest
from cards import H200, RTX_4090
from eight_bit_kernels import attend_in_8_bit, use_counted_kitchen
from kinds import VideoPass, list_video_passes
from memory_budget import MemoryBudget
from true_size import (
    HEIGHT,
    WIDTH,
    NetworkWork,
    count_decode,
    count_encode,
    count_network,
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
from longlive.rollout.rolling_window import make_window
from longlive.rollout.sampler import count_cache_bytes
from longlive.units import FPS


def count_teraflops(work: Work) -> float:
    return work.flops / 1e12


def count_pointwise_gb(work: Work) -> float:
    return work.pointwise_bytes / 1e9


def count_launches(work: Work) -> int:
    return work.launches


def ms_on_h200(work: Work) -> float:
    return 1e3 * H200.predict_seconds(work)


def ms_on_4090(work: Work) -> float:
    return 1e3 * RTX_4090.predict_seconds(work)


LOWEST = 0.9  # of a limit: what is further below it deserves a lower limit


@pytest.fixture(scope="module")
def exact() -> NetworkWork:
    return count_network(make_network(), RolloutConfig())


@pytest.fixture(scope="module")
def in_8_bits() -> NetworkWork:
    """The linears in INT8, and 8-bit attention."""
    with use_counted_kitchen():
        return count_network(make_network(EightBit.INT8, attend_in_8_bit), RolloutConfig())


@pytest.mark.parametrize(
    ("part", "measure", "limit"),
    [
        ("block", count_teraflops, 141),
        ("block", count_pointwise_gb, 43),
        ("block", count_launches, 2660),
        ("block", ms_on_h200, 229),
        ("block", ms_on_4090, 983),
        ("recache", count_teraflops, 82.5),
        ("recache", ms_on_h200, 135),
        ("text", ms_on_h200, 0.31),
    ],
)
def test_a_part_of_the_network_stays_within_its_limit(exact, part, measure, limit):
    assert LOWEST * limit < measure(getattr(exact, part)) <= limit


@pytest.mark.parametrize(
    ("part", "measure", "limit"),
    [
        ("block", count_pointwise_gb, 147),
        ("block", ms_on_h200, 180),
        ("block", ms_on_4090, 500),
        ("recache", ms_on_h200, 103),
    ],
)
def test_a_part_of_the_network_in_8_bits_stays_within_its_limit(in_8_bits, part, measure, limit):
    assert LOWEST * limit < measure(getattr(in_8_bits, part)) <= limit


@pytest.fixture(scope="module")
def tiny_decode() -> Work:
    return count_decode(TinyDecoder(make_tiny_vae()), 3)


@cache
def count_in(form: EightBit) -> Work:
    """Count a block whose linears alone have 8 bits."""
    with use_counted_kitchen():
        return count_network(make_network(form), RolloutConfig()).block


@pytest.mark.parametrize(("measure", "limit"), [(ms_on_h200, 221), (ms_on_4090, 832)])
def test_int8_linears_alone_stay_within_their_limit_and_are_no_real_time_on_an_rtx_4090(tiny_decode, measure, limit):
    everything = count_in(EightBit.INT8) + tiny_decode
    assert LOWEST * limit < measure(everything) <= limit
    assert ms_on_4090(everything) > 1e3 * 12 / FPS


def test_rotated_inputs_cost_no_more():
    assert ms_on_4090(count_in(EightBit.INT8_ROTATED)) == ms_on_4090(count_in(EightBit.INT8))


@pytest.mark.parametrize(("measure", "limit"), [(ms_on_h200, 216), (ms_on_4090, 866)])
def test_float8_linears_alone_stay_within_their_limit(exact, measure, limit):
    block = count_in(EightBit.FP8_SCALED)
    assert LOWEST * limit < measure(block) <= limit
    assert {each.kind for each in block.operations if each.flops > 1e9} == {Kind.GEMM_FP8, Kind.ATTENTION}
    assert block.flops == exact.block.flops


@pytest.fixture(scope="module")
def with_8_bit_attention() -> NetworkWork:
    return count_network(make_network(attend=attend_in_8_bit), RolloutConfig())


@pytest.mark.parametrize(("measure", "limit"), [(ms_on_h200, 196), (ms_on_4090, 674)])
def test_8_bit_attention_alone_stays_within_its_limit(with_8_bit_attention, measure, limit):
    assert LOWEST * limit < measure(with_8_bit_attention.block) <= limit


def test_8_bits_change_what_computes_the_products_not_how_many(exact, in_8_bits):
    kinds = {each.kind for each in in_8_bits.block.operations if each.flops > 1e9}
    assert kinds == {Kind.GEMM_8_BIT, Kind.ATTENTION_8_BIT}
    assert in_8_bits.block.flops == exact.block.flops


@pytest.mark.parametrize(("measure", "limit"), [(ms_on_h200, 188), (ms_on_4090, 523)])
def test_the_fastest_block_with_its_pixels_stays_within_its_limit(in_8_bits, tiny_decode, measure, limit):
    everything = in_8_bits.block + tiny_decode
    assert LOWEST * limit < measure(everything) <= limit


@pytest.fixture(scope="module")
def sampling(exact) -> MemoryBudget:
    return MemoryBudget.of_sampling(make_network(), exact)


@pytest.fixture(scope="module")
def sampling_in_int8(in_8_bits) -> MemoryBudget:
    return MemoryBudget.of_sampling(make_network(EightBit.INT8), in_8_bits)


@pytest.fixture(scope="module")
def tiny_decoding() -> MemoryBudget:
    vae = make_tiny_vae()
    return MemoryBudget.of_decoding(vae, count_decode(TinyDecoder(vae), 3))


def count_gb(budget: MemoryBudget) -> float:
    return budget.total / 1e9


def test_sampling_in_bf16_fits_8_gigabytes(sampling):
    assert LOWEST * 7.0 < count_gb(sampling) <= 7.0


def test_sampling_in_bf16_fits_8_gigabytes_without_triton():
    model = make_network(pointwise=PLAIN)
    assert LOWEST * 7.2 < count_gb(MemoryBudget.of_sampling(model, count_network(model, RolloutConfig()))) <= 7.2


@pytest.mark.parametrize(("at_once", "limit"), [(3, 6.5), (2, 5.1), (1, 3.8)])
def test_decoding_alone_fits_8_gigabytes(sampling, at_once, limit):
    vae = make_vae()
    decoding = MemoryBudget.of_decoding(vae, count_decode(StreamingDecoder(vae, at_once=at_once), 3))
    assert LOWEST * limit < count_gb(decoding) <= limit
    assert sampling.unload_between(decoding) == sampling  # so bf16 fits, too, if the network is unloaded for decoding
    assert count_gb(sampling + decoding) > 8


def test_int8_with_the_tiny_vae_fits_6_5_gigabytes_with_nothing_unloaded(sampling_in_int8, tiny_decoding):
    assert LOWEST * 6.0 < count_gb(sampling_in_int8 + tiny_decoding) <= 6.0


def test_5_gigabytes_would_need_keys_and_values_in_8_bits(sampling_in_int8, tiny_decoding):
    together, config = sampling_in_int8 + tiny_decoding, RolloutConfig()
    shrunk = together.shrink_cache(make_network(), config)
    scales = 2 * 30 * config.window * 1560 * 12 * 4  # of keys and values: layers, tokens, heads, bytes
    assert together.total - shrunk.total == count_cache_bytes(make_network(), config, HEIGHT, WIDTH) // 2 - scales
    assert count_gb(shrunk) < 5 < count_gb(together)


def test_unbounded_positions_cost_little_more(exact):
    unbounded = count_network(make_network(), RolloutConfig(positions=Positions.UNBOUNDED))
    assert unbounded.block.flops == exact.block.flops
    assert ms_on_h200(unbounded.block) <= 1.01 * ms_on_h200(exact.block)


def test_a_block_keeps_nothing_beside_its_latents_and_the_rotations_of_its_last_pass(exact):
    held = [part.held_bytes for part in (exact.clean_pass, exact.recache, exact.steps, exact.text)]
    rotations = 9 * 1560 * 64 * 4 * 4  # of a recache: tokens, pairs of channels, 2 x 2 numbers of four bytes
    assert max(held) - min(held) <= rotations


@pytest.fixture(scope="module")
def decode() -> Work:
    return count_decode(StreamingDecoder(make_vae()), 3)


@pytest.mark.parametrize(("measure", "limit"), [(count_pointwise_gb, 66), (ms_on_h200, 179), (ms_on_4090, 477)])
def test_the_decoding_of_a_block_stays_within_its_limit(decode, measure, limit):
    assert LOWEST * limit < measure(decode) <= limit


@pytest.mark.parametrize(
    ("measure", "limit"), [(count_teraflops, 1.6), (count_pointwise_gb, 7.2), (ms_on_h200, 8.3), (ms_on_4090, 24.1)]
)
def test_the_decoding_of_a_block_by_a_tiny_vae_stays_within_its_limit(tiny_decode, measure, limit):
    assert LOWEST * limit < measure(tiny_decode) <= limit


def test_the_encoding_of_a_block_stays_within_its_limit():
    assert LOWEST * 107 < ms_on_h200(count_encode(StreamingEncoder(make_vae()), 3)) <= 107


TOKENS, WIDE, LAYERS = 1560, 1536, 30  # of a frame, of a token, of the network


def count_by_formula(frames: int, attended: int) -> float:
    """Count the TFLOPs of matrices and attention of a pass: 2 for each multiplication and addition."""
    linear = 2 * TOKENS * WIDE * (6 * WIDE + 2 * 8960)  # q, k, v, o of a frame; q, o of the text
    attention = 4 * TOKENS * WIDE * (attended * TOKENS + 512)
    return LAYERS * frames * (linear + attention) / 1e12


@pytest.fixture(scope="module")
def rolling() -> NetworkWork:
    return count_network(make_network(), RolloutConfig.roll())


@pytest.mark.parametrize(
    ("part", "measure", "limit"),
    [
        ("steps", count_teraflops, 202.1),
        ("block", count_teraflops, 242),
        ("block", count_launches, 1260),
        ("block", count_pointwise_gb, 69),
        ("block", ms_on_h200, 396),
        ("block", ms_on_4090, 1681),
        ("recache", ms_on_h200, 349),
    ],
)
def test_a_part_of_a_rolling_video_stays_within_its_limit(rolling, part, measure, limit):
    assert LOWEST * limit < measure(getattr(rolling, part)) <= limit


COPIES = {"aten::cat", "aten::clone", "aten::copy_", "aten::index", "aten::index_copy_", "aten::_to_copy"}


def count_copied_bytes(work: Work) -> int:
    """Count the bytes that copies read and write."""
    return sum(each.num_bytes for each in work.operations if each.name in COPIES)


def test_a_joint_pass_copies_the_frames_that_it_attends_and_nothing_else(rolling):
    attended = 2 * LAYERS * 2 * 21 * TOKENS * WIDE * 2  # keys and values, read and written, in two bytes
    assert attended < count_copied_bytes(rolling.steps) <= 1.05 * attended  # and what is not of the KV cache
    assert count_copied_bytes(rolling.clean_pass) <= 0.05 * attended


def test_keys_and_values_of_a_rolling_video_are_those_of_24_frames():
    frames = 24 * 2 * LAYERS * TOKENS * WIDE * 2  # keys and values in two bytes
    assert count_cache_bytes(make_network(), RolloutConfig.roll(), HEIGHT, WIDTH) == frames
    assert frames / 1e9 < 6.91


def test_a_rolling_video_takes_what_its_passes_attend(rolling):
    assert count_teraflops(rolling.steps) == pytest.approx(count_by_formula(15, 21), rel=0.002)
    window, passes = make_window(RolloutConfig.roll()), [*list_video_passes(RolloutConfig.roll(), 42)]

    def count(each: VideoPass) -> float:
        place = (window.place_clean if each.is_clean else window.place_block)(3 * each.first, 3 * each.blocks)
        return count_by_formula(place.frames, len(place.attended_slots) + place.frames * place.passing)

    assert sum(map(count, passes[:5])) == pytest.approx(404, rel=0.005)  # until the first block
    assert [each.is_clean for each in passes].count(False) == 42 + 4
    skipped = count_by_formula(3, 21) - count_teraflops(rolling.clean_pass)  # of a clean pass, behind its last keys
    whole = sum(count(each) - skipped * each.is_clean for each in passes)
    assert whole == pytest.approx(9785, rel=0.005)


def test_the_work_is_that_of_matrices_and_attention(exact):
    """By the formula of each: 2 FLOPs per multiplication and addition."""
    tokens, window, rows, wide, hidden, layers = 3 * 1560, 12 * 1560, 512, 1536, 8960, 30
    linear = 2 * tokens * wide * (6 * wide + 2 * hidden)  # q, k, v, o of the frames; q, o of the text
    attention = 4 * tokens * wide * (window + rows)
    by_kind = {kind: sum(each.flops for each in exact.steps.operations if each.kind is kind) for kind in Kind}
    assert by_kind[Kind.ATTENTION] == 4 * layers * attention
    assert by_kind[Kind.GEMM] == pytest.approx(4 * layers * linear, rel=0.002)  # and patches, time and head
