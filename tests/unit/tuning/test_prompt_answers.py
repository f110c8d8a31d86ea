"""From prompts to requests for a language model, and from its answers to pairs."""

import json

import pytest

from longlive.errors import DataError
from longlive.tuning.prompt_pairs import (
    TEMPLATE,
    PromptPair,
    check_action,
    check_num_words,
    check_subject,
    make_requests,
    read_answers,
    read_pairs,
    write_pairs,
    write_requests,
)

BOAT = "A paper boat drifts along a gutter in the rain, close to the water, soft light."
TURNS = "A paper boat spins in a gutter in the rain, close to the water, soft light."
CAT = "An old grey cat sleeps on a window sill above a narrow street, warm evening colours."
WAKES = "An old grey cat on a window sill above a narrow street yawns, warm evening colours."


@pytest.fixture
def answered(write_file, tmp_path):
    """Read answers, one per line, to requests for BOAT (1) and CAT (2)."""

    def read(*answers):
        asked = tmp_path / "requests.jsonl"
        write_requests([BOAT, CAT], asked)
        return read_answers(asked, write_file("answers.jsonl", "\n".join(map(json.dumps, answers))))

    return read


def test_a_request_carries_its_prompt_inside_the_template():
    request, second = make_requests(["a {prompt} of {braces}", "b"], "Go on: {prompt} {here}")
    assert request == {
        "id": 1,
        "prompt": "a {prompt} of {braces}",
        "messages": [{"role": "user", "content": "Go on: a {prompt} of {braces} {here}"}],
    }
    assert second["id"] == 2


def test_a_template_without_its_place_is_refused_before_anything_is_asked():
    with pytest.raises(DataError, match=r"no \{prompt\}; write \{prompt\} where"):
        make_requests(["a"], "Go on.")


def test_an_empty_prompt_is_not_asked_about():
    with pytest.raises(DataError, match="request 2 has an empty prompt"):
        make_requests(["a", " "])


def test_good_answers_come_back_as_pairs(write_file, tmp_path):
    """The whole way: requests, a model, answers, pairs, tuning; answers in another order than asked."""
    asked, pairs_path = tmp_path / "requests.jsonl", tmp_path / "new folder" / "pairs.jsonl"
    write_requests([BOAT, CAT], asked)
    model = {TEMPLATE.replace("{prompt}", BOAT): TURNS, TEMPLATE.replace("{prompt}", CAT): WAKES}
    lines = asked.read_text(encoding="utf-8").splitlines()
    replies = [(entry["id"], model[entry["messages"][0]["content"]]) for entry in map(json.loads, lines)]
    answers = "\n".join(json.dumps({"id": key, "answer": reply}) for key, reply in reversed(replies))

    pairs, refusals = read_answers(asked, write_file("answers.jsonl", answers))
    write_pairs(pairs, pairs_path)

    assert refusals == []
    assert read_pairs(pairs_path) == (PromptPair(BOAT, TURNS), PromptPair(CAT, WAKES))


def test_an_answer_is_found_wherever_models_put_it(answered):
    chat = {"id": "2", "answer": None, "choices": [{"message": {"role": "assistant", "content": f"\n{WAKES}\n"}}]}
    pairs, refusals = answered({"id": 1, "content": TURNS}, chat)
    assert pairs == [PromptPair(BOAT, TURNS), PromptPair(CAT, WAKES)]
    assert refusals == []


def test_refused_answers_are_named_and_affect_no_other(answered):
    pairs, refusals = answered(
        {"id": 9, "answer": TURNS}, {"answer": TURNS}, {"id": 1, "answer": TURNS}, {"id": 1, "answer": WAKES}
    )
    assert pairs == [PromptPair(BOAT, TURNS)]
    unknown, nameless, twice, missing = refusals
    assert unknown.startswith("answer 9 (")
    assert "line 1) matches no request in" in unknown
    assert nameless.startswith("answer without an id (")
    assert twice.startswith("answer 1 (")
    assert "line 4) is a duplicate" in twice
    assert missing == "answer 2 is missing"


@pytest.mark.parametrize("reply", [None, 7, "", "  ", ["text"]])
def test_an_answer_without_text_counts_as_missing(answered, reply):
    assert answered({"id": 1, "answer": reply}, {"id": 2, "choices": []}) == (
        [],
        ["answer 1 is missing", "answer 2 is missing"],
    )


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("A paper boat spins.", "has 4 words; its prompt of 16 words needs 8 to 32"),
        (WAKES, "leaves the subject: it shares 0 of paper, boat, drifts"),
        (BOAT, "adds no word to its prompt"),
        (TURNS.replace(",", "\n"), "has 3 lines"),
        (f"First {TURNS} Then it sinks.", "lists several actions (First ... Then)"),
    ],
)
def test_every_check_is_made(answered, reply, problem):
    pairs, refusals = answered({"id": 1, "answer": reply}, {"id": 2, "answer": WAKES})
    assert pairs == [PromptPair(CAT, WAKES)]
    (refusal,) = refusals
    assert refusal.startswith(f"answer 1 {problem}")


@pytest.mark.parametrize(
    ("asked", "words", "good"),
    [(11, 5, False), (11, 6, True), (11, 22, True), (11, 23, False), (200, 250, True), (200, 251, False)],
)
def test_an_answer_is_half_to_twice_its_prompt_and_never_endless(asked, words, good):
    assert (check_num_words("word " * asked, "word " * words) is None) == good


@pytest.mark.parametrize(
    ("prompt", "answer", "good"),
    [
        ("red fox jumps over snow", "grey owl waits over snow", True),  # 1 of 4 is a quarter
        ("red fox jumps over deep snow", "grey owl waits over snow", False),  # 1 of 5 is less
        ("a red fox and the dogs", "the fox's leap", True),
        ("the fox of the dogs", "the cat of the birds", False),  # stop words are no subject
        (" ".join(f"{letter}{letter}{letter}" for letter in "abcdefghijklm"), "mmm lll kkk", False),
        (" ".join(f"{letter}{letter}{letter}" for letter in "abcdefghijklm"), "lll kkk jjj", True),
        ("42", "a fox", False),
    ],
    ids=["quarter", "less", "few", "stop words", "thirteenth", "twelfth", "no words"],
)
def test_an_answer_keeps_the_subject_its_prompt_opens_with(prompt, answer, good):
    assert (check_subject(prompt, answer) is None) == good


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ("The fox then sleeps", True),
        ("The fox sleeps, then eats, then runs", False),
        ("The fox sleeps; after that it eats; finally it runs", False),
        ("First the fox sleeps, second it eats", False),
        ("Firstly the fox sleeps, and secondly it eats", False),
        ("A first-person view of a fox that then sleeps", True),
        ("The fox sleeps\nunder snow", False),
        ("RED fox, and then the red fox!", False),
        ("red fox", False),
    ],
)
def test_an_answer_adds_one_action(answer, good):
    assert (check_action("red fox", answer) is None) == good


def test_answers_that_are_not_json_are_refused_with_their_line(answered, write_file, tmp_path):
    answered({"id": 1})
    with pytest.raises(DataError, match=r"cut\.jsonl line 2 is not JSON"):
        read_answers(tmp_path / "requests.jsonl", write_file("cut.jsonl", '{"id": 1}\n{"id": 2, "ans'))


@pytest.mark.parametrize("line", ['{"id": 1, "prompt": "b"}', '{"prompt": "b"}'], ids=["twice", "none"])
def test_requests_without_unique_ids_are_refused(write_file, line):
    asked = write_file("requests.jsonl", f'{{"id": 1, "prompt": "a"}}\n{line}')
    with pytest.raises(
        DataError, match=r"requests\.jsonl line 2 needs an id that no other line has; write the requests again"
    ):
        read_answers(asked, asked)
