"""Prompt pairs: what is read from files and typed text, what is refused and where, and how pairs are written."""

import contextlib
import json
import os

import pytest
from growth import measure_growth

from longlive.errors import DataError
from longlive.tuning.prompt_pairs import (
    PromptPair,
    parse_pairs,
    read_pairs,
    shuffle,
    write_pairs,
)


def test_one_text_file_never_switches(write_file):
    assert read_pairs(write_file("prompts.txt", "a\nb\n")) == (PromptPair("a", "a"), PromptPair("b", "b"))


def test_two_text_files_are_paired_by_line(write_file):
    pairs = read_pairs(write_file("prompts.txt", "a\nb"), write_file("switch.txt", "c\nd"))
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
def test_jsonl_gives_each_prompt_with_the_next(write_file, prompts, pairs):
    assert read_pairs(write_file("pairs.jsonl", json.dumps({"prompts": prompts}))) == tuple(
        PromptPair(*pair) for pair in pairs
    )


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.JSONL"])
def test_marks_of_an_editor_are_not_part_of_a_prompt(write_file, name):
    """A byte order mark, line ends of Windows, spaces, blank lines at the end."""
    line = '{"prompts": ["äö "]}' if name.endswith("JSONL") else " äö "
    path = write_file(name, f"\ufeff{line}\r\n{line}\r\n\r\n \r\n".encode())
    assert read_pairs(path) == (PromptPair("äö", "äö"),) * 2


def test_a_line_of_jsonl_ends_at_no_other_character(write_file):
    assert read_pairs(write_file("pairs.jsonl", '{"prompts": ["a\u2028b", "c\x85d"]}')) == (
        PromptPair("a\u2028b", "c\x85d"),
    )


def test_files_of_different_length_are_refused(write_file):
    longer, shorter = write_file("prompts.txt", "a\n" * 12), write_file("switch.txt", "b\n" * 11)
    problem = r"prompts\.txt has 12 lines and .*switch\.txt 11; .* so add or remove 1$"
    with pytest.raises(DataError, match=problem):
        read_pairs(longer, shorter)


def test_a_blank_line_between_prompts_is_refused(write_file):
    with pytest.raises(DataError, match=r"prompts\.txt line 2 has an empty prompt; write a prompt there or remove"):
        read_pairs(write_file("prompts.txt", "a\n \nb\n"))


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
def test_a_line_of_jsonl_that_is_not_a_pair_is_refused_with_its_number(write_file, line, problem):
    path = write_file("pairs.jsonl", '{"prompts": ["a"]}\n\n' + line)
    with pytest.raises(DataError, match=rf"pairs\.jsonl {problem}"):
        read_pairs(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read \(.+\); give a text file in UTF-8"):
        read_pairs(tmp_path / "none.txt")


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl"])
def test_a_pipe_is_refused_without_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"cannot be read \(it is a pipe, not a file\)"):
        read_pairs(tmp_path / name)


def test_a_file_beyond_the_limit_is_refused(write_file):
    path = write_file("prompts.txt", "a\nb")
    assert len(read_pairs(path, limit=3)) == 2
    with pytest.raises(DataError, match=r"cannot be read \(it is larger than 2 bytes\)"):
        read_pairs(path, limit=2)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf\r\n \n"], ids=["empty", "blank"])
def test_a_file_without_prompts_is_refused(write_file, content):
    with pytest.raises(DataError, match=r"prompts\.txt is empty"):
        read_pairs(write_file("prompts.txt", content))


def test_another_encoding_is_refused_with_its_line(write_file):
    with pytest.raises(DataError, match=r"prompts\.txt cannot be read \(line 2 is not UTF-8\); give a text"):
        read_pairs(write_file("prompts.txt", "a\nä\n".encode("latin-1")))


@pytest.mark.parametrize("names", [("a.jsonl", "b.txt"), ("a.txt", "b.jsonl")])
def test_jsonl_is_not_paired_with_a_second_file(write_file, names):
    first, second = (write_file(name, '{"prompts": ["a"]}') for name in names)
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
    assert shuffle(8, seed=1, epoch=0) == (6, 2, 3, 5, 7, 4, 0, 1)
    orders = [shuffle(50, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(found) == list(range(50)) for found in orders)
    assert len(set(map(tuple, orders))) == 9


def test_every_item_comes_first_equally_often():
    firsts = [shuffle(4, seed=0, epoch=epoch)[0] for epoch in range(400)]
    assert all(70 < firsts.count(item) < 130 for item in range(4))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(write_file, tmp_path, monkeypatch):
    path = write_file("pairs.jsonl", "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=r"pairs\.jsonl cannot be written \(No space left on device\)"):
        write_pairs([PromptPair("a", "b")], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_refused(write_file):
    with pytest.raises(DataError, match=r"cannot be written .* choose a folder you may write to"):
        write_pairs([PromptPair("a", "b")], write_file("taken", "") / "pairs.jsonl")


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
