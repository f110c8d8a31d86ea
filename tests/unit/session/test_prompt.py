"""A prompt: its embedding without rows of zeros, its digest, its words."""

import math

import pytest
import tiny
import torch

from longlive.errors import ConditioningError
from longlive.session.boundary import Curve
from longlive.session.prompt import Prompt, encode_prompt_mix, mix_prompts


@pytest.mark.parametrize("shape", [(2, 4, 10), (0, 4, 10), (4, 10), (1, 1, 4, 10), (1, 0, 10), (1, 4, 0)])
def test_a_batch_of_prompts_is_refused(shape):
    with pytest.raises(ConditioningError, match="a session takes one prompt"):
        Prompt.of(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_prompt_that_is_not_finite_is_refused(value):
    embedding = torch.ones(1, 4, 10)
    embedding[0, 2, 3] = value
    with pytest.raises(ConditioningError, match=r"holds NaN or infinity.*load the text encoder again"):
        Prompt.of(embedding)
    with pytest.raises(ConditioningError, match=r"holds int64, expected floating-point numbers; encode"):
        Prompt.of(torch.ones(1, 4, 10, dtype=torch.int64))


@pytest.mark.parametrize("used", [0, 1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_are_trimmed_and_padded_back_exactly(used, dtype):
    embedding = torch.zeros(1, 6, 10, dtype=dtype)
    embedding[:, :used] = torch.randn(1, used, 10)
    if used == 3:
        embedding[:, 1] = 0  # a zero row within stays
    prompt = Prompt.of(embedding)
    assert prompt.embedding.shape == (1, max(1, used), 10)
    assert prompt.pad().dtype is dtype
    assert torch.equal(prompt.pad(), embedding)


def test_a_prompt_is_a_copy_that_later_writes_cannot_reach():
    embedding = torch.randn(1, 4, 10)
    prompt = Prompt.of(embedding)
    kept, digest = embedding.clone(), prompt.digest
    embedding.zero_()
    assert torch.equal(prompt.pad(), kept)
    assert Prompt.of(kept).digest == digest


def test_a_prompt_is_known_by_numbers_and_rows_and_not_by_words():
    numbers = torch.randn(1, 4, 10)
    digest = Prompt.of(numbers, "a fox").digest
    assert Prompt.of(numbers, "a wolf").digest == digest
    padded = torch.nn.functional.pad(numbers, (0, 0, 0, 1))
    assert Prompt.of(padded).digest != digest  # zero rows are attended too
    assert Prompt.of(numbers.double()).digest != digest
    assert Prompt.of(numbers + 1e-6).digest != digest


def test_no_message_moves_the_cursor_of_a_terminal():
    prompt = Prompt(tiny.prompt(1).embedding, 4, "a fox\x1b[2J\nruns")
    assert str(prompt) == r"a fox\x1b[2J\nruns"


def test_a_prompt_without_words_is_named_by_its_digest():
    prompt = Prompt.of(torch.ones(1, 2, 10))
    assert str(prompt) == f"(prompt {prompt.digest[:8]})"


def make_prompt(rows: list[list[float]], total: int = 8, dtype: torch.dtype = torch.float32) -> Prompt:
    embedding = torch.tensor([rows], dtype=dtype)
    return Prompt.of(torch.nn.functional.pad(embedding, (0, 0, 0, total - len(rows))))


def test_a_mix_is_the_weighted_mean_and_shorter_prompts_end_in_zeros():
    long, short = make_prompt([[4.0, 0.0], [0.0, 8.0]]), make_prompt([[0.0, 2.0]], total=6)
    mixed = mix_prompts((long, short), (3, 1), text="both")
    assert mixed.pad()[0].tolist() == [[3, 0.5], [0, 6], *[[0, 0]] * 6]
    assert (mixed.rows, mixed.text) == (8, "both")
    assert mixed.digest == mix_prompts((long, short), (0.75, 0.25)).digest
    assert torch.equal(mix_prompts((long,), (5,)).pad(), long.pad())
    thirds = mix_prompts([make_prompt([row]) for row in ([3.0, 0.0], [0.0, 3.0], [3.0, 3.0])], (1, 1, 1))
    torch.testing.assert_close(thirds.embedding, torch.tensor([[[2.0, 2.0]]]))


def test_a_spherical_mix_turns_each_row_and_its_norm_changes_in_a_line():
    start, end = make_prompt([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), make_prompt([[0.0, 4.0], [3.0, 0.0]])
    turned, parallel, alone = mix_prompts((start, end), (1, 2), Curve.SPHERICAL).embedding[0]
    norm = 2 + 2 * 2 / 3
    torch.testing.assert_close(turned, norm * torch.tensor([math.cos(math.pi / 3), math.sin(math.pi / 3)]))
    torch.testing.assert_close(parallel, torch.tensor([1 + 2 * 2 / 3, 0.0]))
    torch.testing.assert_close(alone, torch.tensor([1 / 3, 1 / 3]))  # the other prompt is zero here: in a line


@pytest.mark.parametrize("curve", list(Curve))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_mix_is_finite_and_keeps_the_dtype(curve, dtype):
    """Also for rows that are opposite, equal, tiny or near the largest number."""
    rows = [[1.0, 2.0], [-1.0, -2.0], [1e-7, 0.0], [6e4, 0.0], [0.0, 0.0], [1.0, 0.0]]
    others = [[-1.0, -2.0], [-1.0, -2.0], [0.0, 1e-7], [6e4, 6e4], [0.0, 1.0], [1.0, 1e-3]]
    mixed = mix_prompts((make_prompt(rows, dtype=dtype), make_prompt(others, dtype=dtype)), (1, 1), curve)
    assert mixed.embedding.dtype is dtype
    assert mixed.embedding.isfinite().all()


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, math.nan), (math.inf, 1)])
def test_weights_that_are_no_share_are_refused(weights):
    with pytest.raises(ConditioningError, match=r"the weights of the mixed prompts are .*; use numbers above 0"):
        mix_prompts((tiny.prompt(0), tiny.prompt(1)), weights)


def test_prompts_of_two_text_encoders_are_not_mixed():
    with pytest.raises(ConditioningError, match=r"the mixed prompts are \[2, 10\] wide; encode all of them with one"):
        mix_prompts((tiny.prompt(0), make_prompt([[1.0, 1.0]])), (1, 1))


def test_a_text_with_weights_is_one_mixed_prompt():
    prompts = {f"a {colour} ring": tiny.prompt(n) for n, colour in enumerate(("red", "blue", "green"))}
    text = "a red ring :0.5 AND a blue ring :.25 AND  a green ring  :0.25"
    mixed = encode_prompt_mix(text, prompts.__getitem__)
    assert mixed.digest == mix_prompts(list(prompts.values()), (2, 1, 1)).digest
    assert mixed.text == text


@pytest.mark.parametrize(
    "text",
    ["a red ring", "a red ring :0.7", "a ring :1 AND a fox", "a ring:1 AND a fox:2", "a :b AND c :d", ":1 AND :2", ""],
)
def test_any_other_text_is_one_plain_prompt(text):
    seen = []
    assert encode_prompt_mix(text, lambda text: seen.append(text) or tiny.prompt(0)).text == "prompt 0"
    assert seen == [text]


def test_a_weight_of_zero_is_refused_by_its_part():
    with pytest.raises(ConditioningError, match=r"the weight of 'a fox' is 0\.0; use a number above 0"):
        encode_prompt_mix("a ring :1 AND a fox :0.0", lambda _: tiny.prompt(0))
