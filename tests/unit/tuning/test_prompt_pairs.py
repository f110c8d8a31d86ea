"""Prompt pairs: what is read, what is refused and where, and the way to a language model and back."""

import contextlib
import json
import os

import pytest
from growth import measure_growth

from longlive.errors import DataError
from longlive.tuning.prompt_pairs import (
    TEMPLATE,
    PromptPair,
    check_action,
    check_num_words,
    check_subject,
    make_requests,
    parse_pairs,
    read_answers,
    read_pairs,
    shuffle,
    write_pairs,
    write_requests,
)

BOAT = "A paper boat drifts along a gutter in the rain, close to the water, soft light."
TURNS = "A paper boat spins in a gutter in the rain, close to the water, soft light."
CAT = "An old grey cat sleeps on a window sill above a narrow street, warm evening colours."
WAKES = "An old grey cat on a window sill above a narrow street yawns, warm evening colours."


@pytest.fixture
def file(tmp_path):
    """Write a file of a name and content; return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def answered(file, tmp_path):
    """Read answers, one per line, to requests for BOAT (1) and CAT (2)."""

    def read(*answers):
        asked = tmp_path / "requests.jsonl"
        write_requests([BOAT, CAT], asked)
        return read_answers(asked, file("answers.jsonl", "\n".join(map(json.dumps, answers))))

    return read


def test_one_text_file_never_switches(file):
    assert read_pairs(file("prompts.txt", "a\nb\n")) == (PromptPair("a", "a"), PromptPair("b", "b"))


def test_two_text_files_are_paired_by_line(file):
    pairs = read_pairs(file("prompts.txt", "a\nb"), file("switch.txt", "c\nd"))
    assert pairs == (PromptPair("a", "c"), PromptPair("b", "d"))


@pytest.mark.parametrize(
    ("prompts", "pairs"),
    [
        (["a", "b"], [("a", "b")]),
        (["a"], [("a", "a")]),
        (["a", "b", "c"], [("a", "b"), ("b", "c")]),
    ],
    ids=["two", "one", "three"],
)
def test_jsonl_gives_each_prompt_with_the_next(file, prompts, pairs):
    assert read_pairs(file("pairs.jsonl", json.dumps({"prompts": prompts}))) == tuple(
        PromptPair(*pair) for pair in pairs
    )


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.JSONL"])
def test_marks_of_an_editor_are_not_part_of_a_prompt(file, name):
    """A byte order mark, line ends of Windows, spaces, blank lines at the end."""
    line = '{"prompts": ["äö "]}' if name.endswith("JSONL") else " äö "
    path = file(name, f"\ufeff{line}\r\n{line}\r\n\r\n \r\n".encode())
    assert read_pairs(path) == (PromptPair("äö", "äö"),) * 2


def test_a_line_of_jsonl_ends_at_no_other_character(file):
    assert read_pairs(file("pairs.jsonl", '{"prompts": ["a\u2028b", "c\x85d"]}')) == (PromptPair("a\u2028b", "c\x85d"),)


def test_files_of_different_length_are_refused(file):
    longer, shorter = file("prompts.txt", "a\n" * 12), file("switch.txt", "b\n" * 11)
    problem = r"prompts\.txt has 12 lines and .*switch\.txt 11; .* so add or remove 1$"
    with pytest.raises(DataError, match=problem):
        read_pairs(longer, shorter)


def test_a_blank_line_between_prompts_is_refused(file):
    with pytest.raises(DataError, match=r"prompts\.txt line 2 has an empty prompt; write a prompt there or remove"):
        read_pairs(file("prompts.txt", "a\n \nb\n"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompts": ["a"', "line 3 is not JSON .* one object per line"),
        ('{"prompts": ["\\ud83d"]}', "line 3 is not JSON .*not whole text"),
        ('{"prompts": ["a", "b"], "weight": NaN}', "line 3 is not JSON .NaN is not a number"),
        ("[" * 100_000, "line 3 is not JSON"),
        ('["a", "b"]', "line 3 has .* instead of an object"),
        ("{}", "line 3 has None instead of a list of prompts"),
        ('{"prompts": "a"}', "line 3 has 'a' instead of a list of prompts"),
        ('{"prompts": []}', r"line 3 has \[\] instead of a list of prompts"),
        ('{"prompts": ["a", 7]}', "line 3 has 7 instead of a prompt"),
        ('{"prompts": ["a", " "]}', "line 3 has an empty prompt"),
    ],
)
def test_a_line_of_jsonl_that_is_not_a_pair_is_refused_with_its_number(file, line, problem):
    path = file("pairs.jsonl", '{"prompts": ["a"]}\n\n' + line)
    with pytest.raises(DataError, match=rf"pairs\.jsonl {problem}"):
        read_pairs(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read \(.+\); give a text file in UTF-8"):
        read_pairs(tmp_path / "none.txt")


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"cannot be read \(it is a pipe, not a file\)"):
        read_pairs(tmp_path / name)


def test_a_file_beyond_the_limit_is_refused(file):
    path = file("prompts.txt", "a\nb")
    assert len(read_pairs(path, limit=3)) == 2
    with pytest.raises(DataError, match=r"cannot be read \(it is larger than 2 bytes\)"):
        read_pairs(path, limit=2)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf\r\n \n"], ids=["empty", "blank"])
def test_a_file_without_prompts_is_refused(file, content):
    with pytest.raises(DataError, match=r"prompts\.txt is empty"):
        read_pairs(file("prompts.txt", content))


def test_another_encoding_is_refused_with_its_line(file):
    with pytest.raises(DataError, match=r"prompts\.txt cannot be read \(line 2 is not UTF-8\); give a text"):
        read_pairs(file("prompts.txt", "a\nä\n".encode("latin-1")))


@pytest.mark.parametrize("names", [("a.jsonl", "b.txt"), ("a.txt", "b.jsonl")])
def test_jsonl_is_not_paired_with_a_second_file(file, names):
    first, second = (file(name, '{"prompts": ["a"]}') for name in names)
    with pytest.raises(DataError, match="holds whole pairs, so give it alone"):
        read_pairs(first, second)


@pytest.mark.parametrize("arrow", ["->", " -> ", "=>", " → ", " --> "])
def test_typed_pairs_are_read_with_any_arrow(arrow):
    assert parse_pairs(f"\ufeff# a comment -> \na{arrow}b\r\n  c  \n") == (PromptPair("a", "b"), PromptPair("c", "c"))


def test_typed_prompts_in_a_chain_are_paired_with_the_next():
    assert parse_pairs("a -> b -> c") == (PromptPair("a", "b"), PromptPair("b", "c"))


def test_a_typed_pair_with_one_side_is_refused_with_its_line():
    with pytest.raises(DataError, match=r"^line 2 has an empty prompt"):
        parse_pairs("# a boat\na boat ->")


def test_a_text_of_comments_is_refused():
    with pytest.raises(DataError, match="has no prompts; write for example"):
        parse_pairs("\n# a -> b\n")


def test_order_is_the_same_everywhere_and_differs_by_epoch():
    assert shuffle(8, seed=1, epoch=0) == [6, 2, 3, 5, 7, 4, 0, 1]
    orders = [shuffle(50, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(found) == list(range(50)) for found in orders)
    assert len(set(map(tuple, orders))) == 9


def test_every_item_comes_first_equally_often():
    firsts = [shuffle(4, seed=0, epoch=epoch)[0] for epoch in range(400)]
    assert all(70 < firsts.count(item) < 130 for item in range(4))


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


def test_good_answers_come_back_as_pairs(file, tmp_path):
    """The whole way: requests, a model, answers, pairs, tuning; answers in another order than asked."""
    asked, pairs_path = tmp_path / "requests.jsonl", tmp_path / "new folder" / "pairs.jsonl"
    write_requests([BOAT, CAT], asked)
    model = {TEMPLATE.replace("{prompt}", BOAT): TURNS, TEMPLATE.replace("{prompt}", CAT): WAKES}
    lines = asked.read_text(encoding="utf-8").splitlines()
    replies = [(entry["id"], model[entry["messages"][0]["content"]]) for entry in map(json.loads, lines)]
    answers = "\n".join(json.dumps({"id": key, "answer": reply}) for key, reply in reversed(replies))

    pairs, refusals = read_answers(asked, file("answers.jsonl", answers))
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


def test_answers_that_are_not_json_are_refused_with_their_line(answered, file, tmp_path):
    answered({"id": 1})
    with pytest.raises(DataError, match=r"cut\.jsonl line 2 is not JSON"):
        read_answers(tmp_path / "requests.jsonl", file("cut.jsonl", '{"id": 1}\n{"id": 2, "ans'))


@pytest.mark.parametrize("line", ['{"id": 1, "prompt": "b"}', '{"prompt": "b"}'], ids=["twice", "none"])
def test_requests_without_unique_ids_are_refused(file, line):
    asked = file("requests.jsonl", f'{{"id": 1, "prompt": "a"}}\n{line}')
    with pytest.raises(
        DataError, match=r"requests\.jsonl line 2 needs an id that no other line has; write the requests again"
    ):
        read_answers(asked, asked)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file, tmp_path, monkeypatch):
    path = file("pairs.jsonl", "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=r"pairs\.jsonl cannot be written \(No space left on device\)"):
        write_pairs([PromptPair("a", "b")], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_refused(file):
    with pytest.raises(DataError, match=r"cannot be written .* choose a folder you may write to"):
        write_pairs([PromptPair("a", "b")], file("taken", "") / "pairs.jsonl")


def test_pairs_are_written_for_people_too(tmp_path):
    write_pairs([PromptPair("ein Bär", "猫\u2028")], tmp_path / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == '{"prompts": ["ein Bär", "猫\u2028"]}\n'.encode()


@pytest.mark.parametrize("piece", ["-", "=", "- ", "->", " -", "\r", "\n", "#", "a", "\u2028"], ids=repr)
def test_time_to_read_typed_pairs_grows_with_their_length(piece):
    """Four times the text takes four times as long, sixteen times where every dash is tried with every other."""

    def read(text: str) -> None:
        with contextlib.suppress(DataError):
            parse_pairs(f"a -> b\n{text}")

    assert measure_growth(read, piece * 8_000, piece * 32_000) < 10
