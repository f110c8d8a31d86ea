"""A prompt: its embedding without rows of zeros, its digest, its words."""

import pytest
import tiny
import torch

from longlive.errors import ConditioningError
from longlive.session.session import Prompt


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
