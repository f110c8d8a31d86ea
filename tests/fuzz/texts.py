"""Attacks on texts: scripts, in Python and in the editor; TOML, JSONL, typed pairs; what the pack remembers."""

import atexit
import dataclasses
import functools
import json
import random
import subprocess
import types
import typing
from pathlib import Path

import mutators
from harness import Target, Unclear, expect, expect_finite

from longlive.errors import TimelineError
from longlive.session.timeline import Segment, parse_timeline
from longlive.tuning.config import read_config
from longlive.tuning.metrics_log import MetricsLog
from longlive.tuning.prompt_pairs import PromptPair, parse_pairs, read_answers, read_pairs, write_pairs, write_requests
from longlive.weights.file_digest import DIGESTS_FILE, digest_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "longlive" / "tuning" / "configs").glob("*.toml"))
VECTORS = json.loads((ROOT / "tests" / "timeline_vectors.json").read_text(encoding="utf-8"))
SCRIPT_TOKENS = (
    "|", "\n", "\r\n", "\r", "\t", " ", "  ", "#", "\ufeff", "\u00a0", "\u3000", "\u2028", "8s", "10b", "30f", "1.5s",
    "0s", "-3b", "+2b", ".5s", "7.", "1e3s", "99999999s", "86400s", "5f", "6 frames", "1second", "SECONDS", "2Blocks",
    "keep", "cut", "renew", "recache", "kep", "kut", "renw", "recach", "KEEP", "｜", "│", "¦", "K", "ſ", "İ", "ı", "٣",
    "a fox", "é", "e\u0301", "😀", "\U0001d7d8", "constructor", "__proto__", "0.1", "1.0000000000000001", "3.3",
    "blend", "blend 3b", "blend 2 s spherical", "linear", "blnd", "seed", "seed 7", " seed 18446744073709551616", "007",
    "b", "1b|x", "1b | x", " 1b | x", "1 b keep | x\n  y",
)  # fmt: skip
TOML_TOKENS = (
    "nan", "inf", "-inf", "1e400", "true", "1.5", "-1", "0", "2.5", '"x"', "[]", "[1]", "{}", "{a=1}", '"\\u0000"',
    "1979-05-27", "99999999999999999999", "[model]", "[x]", "[[model]]", "a.b.c = 1", "=", '"""', "'", "#",
    "[" * 3000, "weights = 5", "seed = 1.5", "guidance = 'x'", "steps = [1000, nan]",
)  # fmt: skip
JSON_TOKENS = ("{", "}", "[", "]", ":", ",", '"', "null", "NaN", "1e999", "9" * 5000, "\\ud800", "\u2028", "[" * 3000)


@functools.cache
def start_editor() -> subprocess.Popen:
    """Start a Node.js process that reads scripts with the editor's parser."""
    program = Path(__file__).with_name("timeline.mjs")
    process = subprocess.Popen(["node", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(close_editor)
    return process


def close_editor() -> None:
    if start_editor.cache_info().currsize:
        process = start_editor()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait()
        start_editor.cache_clear()


def read_in_editor(script: str, block: int):
    """Read a script with the editor's parser: segments as lists, or the problem."""
    process = start_editor()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([script, block]).encode() + b"\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def make_script(draw: random.Random) -> str:
    if draw.random() < 0.3:
        return "".join(draw.choice(SCRIPT_TOKENS) for _ in range(draw.randint(1, 14)))
    return mutators.mutate_text(draw, draw.choice(VECTORS)["script"], SCRIPT_TOKENS)


def attack_script(draw: random.Random, folder: Path) -> None:
    """Python and the editor read the same segments, or name the same problem at the same place."""
    script, block = make_script(draw).encode("utf-8", "replace").decode(), draw.choice((3, 3, 3, 1, 5))
    theirs = read_in_editor(script, block)
    try:
        segments = parse_timeline(script, block)
    except TimelineError as error:
        ours = {"line": error.line, "column": error.column, "problem": error.problem}
        if ours != theirs:
            raise Unclear(f"{script!r} with blocks of {block}: {ours}, in the editor {theirs}") from None
        raise
    ours = [[s.prompt, s.blocks, str(s.boundary), s.line, s.asked, *describe_switch(s)] for s in segments]
    expect(ours == theirs, f"{script!r} with blocks of {block}: {ours}, in the editor {theirs}")


def describe_switch(segment: Segment) -> list:
    seed, blend = segment.seed, segment.blend
    return ["" if seed is None else str(seed), blend.blocks if blend else 0, str(blend.curve) if blend else ""]


def attack_config(draw: random.Random, folder: Path) -> None:
    """A configuration of a tuning: every setting has the type it is declared with, every number is finite."""
    text = draw.choice(CONFIGS).read_text()
    if draw.random() < 0.6:  # another value for one setting
        lines = text.split("\n")
        number = draw.choice([n for n, line in enumerate(lines) if "=" in line and not line.startswith("#")])
        lines[number] = f"{lines[number].partition('=')[0]}= {draw.choice(TOML_TOKENS)}"
        text = "\n".join(lines)
    else:
        text = mutators.mutate_text(draw, text, TOML_TOKENS)
    content = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.2:
        content = mutators.mutate_bytes(draw, content)
    path = folder / "tuning.toml"
    path.write_bytes(content)
    check_types(read_config(path))


def check_types(config: object) -> None:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_types(value)
            continue
        expect(is_of(value, hints[field.name]), f"{field.name} is {value!r}")
        expect_finite(value, field.name)


def is_of(value: object, kind: object) -> bool:
    if isinstance(kind, types.UnionType):
        return any(is_of(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(is_of(item, inner) for item in value)
    assert isinstance(kind, type)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


PAIRS = (PromptPair("A red fox runs over snow at night", "The red fox runs and leaps over a fallen tree"),
         PromptPair("An owl sits on a branch", "The owl on the branch opens its wings"))  # fmt: skip


def damage_lines(draw: random.Random, text: str) -> bytes:
    """JSONL with another value, other characters or other bytes."""
    match draw.randrange(3):
        case 0:
            lines = text.splitlines()
            number = draw.randrange(len(lines))
            lines[number] = mutators.write_json(draw, mutators.mutate_json(draw, json.loads(lines[number])))
            return "\n".join(lines).encode("utf-8", "surrogatepass")
        case 1:
            return mutators.mutate_text(draw, text, JSON_TOKENS).encode("utf-8", "surrogatepass")
    return mutators.mutate_bytes(draw, text.encode())


def check_pairs(pairs) -> None:
    for pair in pairs:
        for prompt in (pair.first, pair.second):
            expect(isinstance(prompt, str) and bool(prompt.strip()), f"the prompt {prompt!r} was accepted")
            prompt.encode()


def attack_pairs(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(("pairs.jsonl", "pairs.jsonl", "pairs.txt"))
    write_pairs(PAIRS, path)
    path.write_bytes(damage_lines(draw, path.read_text()))
    second = folder / "second.txt" if draw.random() < 0.2 else None
    if second:
        second.write_bytes(mutators.mutate_bytes(draw, b"one\ntwo"))
    check_pairs(read_pairs(path, second))


def attack_answers(draw: random.Random, folder: Path) -> None:
    asked, answered = folder / "requests.jsonl", folder / "answers.jsonl"
    write_requests([pair.first for pair in PAIRS], asked)
    lines = [{"id": n, "answer": pair.second} for n, pair in enumerate(PAIRS, start=1)]
    lines.append({"id": 1, "choices": [{"message": {"content": "again"}}]})
    answered.write_text("".join(json.dumps(line) + "\n" for line in lines))
    harmed = draw.choice((asked, answered))
    harmed.write_bytes(damage_lines(draw, harmed.read_text()))
    pairs, refusals = read_answers(asked, answered)
    check_pairs(pairs)
    for line in refusals:
        expect(line.isprintable() and len(line) < 1000, f"a refusal is {line[:300]!r}")


def attack_typed_pairs(draw: random.Random, folder: Path) -> None:
    text = "# two pairs\nA red fox runs -> The red fox leaps\nan owl sits → the owl flies => it lands\n"
    check_pairs(parse_pairs(mutators.mutate_text(draw, text, ("->", "→", "=>", "-", ">", "#", "\n"))))


def attack_curve(draw: random.Random, folder: Path) -> None:
    """A damaged metrics log: its whole lines are read, and new ones can be added."""
    curve = MetricsLog(folder / "curve.jsonl")
    for step in range(1, 5):
        curve.add(step, {"loss": 1 / step})
    curve.path.write_bytes(damage_lines(draw, curve.path.read_text()))
    for line in curve.read():
        expect(isinstance(line, dict), f"the line {line!r} was read")
    curve.truncate(3)
    curve.add(4, {"loss": 0.5})
    found = curve.read()
    expect(found[-1] == {"step": 4, "loss": 0.5}, "a new line is not read back")
    expect(all(line["step"] <= 4 for line in found), "a line that was cut is still there")


def attack_digests(draw: random.Random, folder: Path) -> None:
    """A damaged file of remembered digests is ignored: the digest found is that of the bytes."""
    path, remembered = folder / "weights.bin", folder / DIGESTS_FILE
    path.write_bytes(draw.randbytes(64))
    right = digest_file(path)
    text = json.dumps({str(path): [64, 0, 1, 2, 3, "0" * 64], str(folder / "x"): [1, 2, "f" * 64], "y": []})
    remembered.write_bytes(damage_lines(draw, text))
    for _ in range(2):
        expect(digest_file(path, cache_dir=folder) == right, "another digest was given")


TARGETS = (
    Target("timeline scripts", 3000, attack_script),
    Target("TOML", 1500, attack_config),
    Target("prompt pairs", 500, attack_pairs),
    Target("requests and answers", 500, attack_answers),
    Target("typed pairs", 300, attack_typed_pairs),
    Target("loss curves", 300, attack_curve),
    Target("remembered digests", 200, attack_digests),
)
