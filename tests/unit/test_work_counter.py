"""The counter of work: one rule for each kind of operation, checked by hand on small tensors."""

import pytest
import torch
import torch.nn.functional as F
from cards import H200
from eight_bit_kernels import attend_in_8_bit, int8_linear
from work_counter import Kind, WorkCounter, count_work

META, BF16, FP32 = torch.device("meta"), torch.bfloat16, torch.float32


def make(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, device=META, dtype=dtype)


X, Y, ROW = make(4, 6), make(4, 6), make(6)


@pytest.mark.parametrize(
    ("compute", "numbers", "launches"),
    [
        (lambda: X + Y, 3 * 24, 1),
        (lambda: X + ROW.expand(4, 6), 2 * 24 + 6, 1),  # what is expanded is read once
        (lambda: X.clone().add_(Y), 2 * 24 + 3 * 24, 2),
        (lambda: X[1:3].copy_(Y[:2]), 2 * 12, 1),  # a copy does not read what it writes over
        (lambda: torch.zeros_like(X), 24, 1),
        (lambda: torch.add(X, Y, out=torch.empty_like(X)), 3 * 24, 1),
        (lambda: X.t().unflatten(0, (2, 3)).unbind(0)[0], 0, 0),
        (lambda: torch.cat([X, Y]), 4 * 24, 1),
        (lambda: X.index_copy_(0, torch.empty(2, dtype=torch.long, device=META), Y[:2]), 2 * 12, 1),
        (lambda: F.rms_norm(X, (6,), ROW), 2 * 24 + 6, 1),
        (lambda: torch.ones(3) + torch.ones(3), 0, 0),  # on the CPU
    ],
)
def test_what_is_moved_is_counted_once(compute, numbers, launches):
    work = count_work(compute)
    assert (work.num_bytes, work.launches, work.flops) == (2 * numbers, launches, 0)
    assert work.pointwise_bytes == work.num_bytes


A, B, BIAS = make(5, 3), make(3, 7), make(7)
Q, K = make(1, 2, 5, 8), make(1, 2, 9, 8)
VIDEO = make(1, 3, 4, 6, 6)


@pytest.mark.parametrize(
    ("compute", "kind", "flops", "numbers"),
    [
        (lambda: A @ B, Kind.GEMM, 2 * 5 * 3 * 7, 15 + 21 + 35),
        (lambda: torch.addmm(BIAS, A, B), Kind.GEMM, 2 * 5 * 3 * 7, 15 + 21 + 35 + 7),
        (lambda: torch.bmm(A[None], B[None]), Kind.GEMM, 2 * 5 * 3 * 7, 15 + 21 + 35),
        (lambda: F.scaled_dot_product_attention(Q, K, K), Kind.ATTENTION, 4 * 2 * 5 * 9 * 8, 2 * 80 + 2 * 144),
        (lambda: F.conv3d(VIDEO, make(2, 3, 3, 1, 1)), Kind.CONVOLUTION, 2 * 2 * 2 * 36 * 9, 432 + 18 + 144),
    ],
)
def test_products_are_counted_by_their_formula(compute, kind, flops, numbers):
    (operation,) = count_work(compute).operations
    assert (operation.kind, operation.flops, operation.num_bytes) == (kind, flops, 2 * numbers)


def test_a_convolution_keeps_the_layout_of_its_weight():
    last = torch.channels_last_3d
    weight, found = make(2, 3, 3, 1, 1).to(memory_format=last), []
    work = count_work(lambda: found.append(F.conv3d(VIDEO, weight)))
    assert [each.kind for each in work.operations] == [Kind.CONVOLUTION_CHANNELS_LAST]
    assert found[0].is_contiguous(memory_format=last)


def test_a_custom_operation_is_one_launch():
    @torch.library.custom_op("work_counter_test::turn", mutates_args={"out"})
    def turn(x: torch.Tensor, out: torch.Tensor) -> None:
        raise AssertionError("the meta device computes nothing")

    turn.register_fake(lambda x, out: None)
    work = count_work(lambda: turn(X, Y))
    assert (work.launches, work.num_bytes) == (1, 2 * (24 + 2 * 24))


def test_an_8_bit_product_rounds_its_input_first():
    rounding, product = count_work(lambda: int8_linear(X, make(5, 6, dtype=torch.int8), make(5, 1), None)).operations
    assert (rounding.kind, rounding.num_bytes) == (Kind.POINTWISE, 24 * 2 + 24)
    assert (product.kind, product.flops) == (Kind.GEMM_8_BIT, 2 * 4 * 6 * 5)
    assert product.num_bytes == 24 + 30 + 5 * 2 + 4 * 5 * 2


def test_8_bit_attention_rounds_queries_keys_and_values_first():
    q, k = make(1, 5, 2, 8), make(1, 9, 2, 8)
    *rounding, attention = count_work(lambda: attend_in_8_bit(q, k, k)).operations
    assert [each.num_bytes for each in rounding] == [3 * 80, 3 * 144, 3 * 144]
    assert (attention.kind, attention.flops) == (Kind.ATTENTION_8_BIT, 4 * 2 * 5 * 9 * 8)
    assert attention.num_bytes == 80 + 2 * 144 + 2 * 80


def test_kernels_in_float64_are_told():
    work = count_work(lambda: X.double().cos() + make(1, dtype=FP32))
    assert (work.launches, work.launches_in_double) == (3, 3)


def test_the_peak_is_what_is_alive_at_once():
    """A view keeps its storage alive; what was given is not counted."""

    def compute() -> None:
        first = X + Y  # 48 bytes
        part = first[0]
        del first
        second = part.float()  # 24 bytes
        del part
        second + 1  # 24 bytes
        X.double()  # 192 bytes

    assert count_work(compute).peak_bytes == 24 + 192


def test_a_second_count_begins_with_what_the_first_left_alive():
    counter = WorkCounter()
    with counter:
        kept = X + Y
    with counter:
        kept + Y
    assert (counter.work.launches, counter.work.held_bytes, counter.work.peak_bytes) == (1, 48, 96)


def test_two_works_together_have_the_higher_peak_and_what_was_held_before_it():
    small, large = count_work(lambda: X + Y), count_work(lambda: X.double())
    assert [(a + b).peak_bytes for a, b in ((small, large), (large, small))] == [192, 192]
    assert (small + large).launches == 2


def test_a_time_is_predicted_from_what_is_slowest():
    x, weight = make(4096, 4096), make(4096, 4096)
    product = count_work(lambda: x @ weight)
    assert H200.predict_seconds(product) == 2 * 4096**3 / 680e12
    assert H200.predict_seconds(count_work(lambda: x + weight)) == 3 * x.nbytes / 4.3e12
    assert H200.predict_seconds(count_work(lambda: X + Y)) == 2.5e-6
