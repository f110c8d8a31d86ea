"""Changes of bytes, JSON, text and tensors: what damage, mistakes and malice do to a file."""

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import save
from torch import Tensor

HEADER = 2048  # bytes at the beginning of a file that decide most
WEIRD_NUMBERS = (0, 1, 2, -1, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
WEIRD_TEXTS = (
    "", " ", "x", "0", "1", "-1", "nan", "1e400", "true", "null", "a\nb", "\0", "\x1b[2J", "\u202eabc", "\ud800",
    "../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x", "NUL", "K\u212a\u017f\u0130", "😀" * 3, "x" * 5000,
)  # fmt: skip
WEIRD_VALUES = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e-310, 1e308, math.nan, math.inf, -math.inf, 10**30,
    *WEIRD_NUMBERS, *WEIRD_TEXTS, [], [[]], [1], [None], ["x"] * 40, {}, {"a": 1}, {"": None},
)  # fmt: skip
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool,
          torch.float8_e4m3fn, torch.complex64)  # fmt: skip


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """One to three changes, half of them near the beginning."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(BYTE_CHANGES)(draw, changed)
    return bytes(changed)


def place(draw: random.Random, content: Sequence) -> int:
    end = len(content) if draw.random() < 0.5 else min(len(content), HEADER)
    return draw.randrange(end) if end else 0


def flip(draw: random.Random, content: bytearray) -> None:
    if content:
        content[place(draw, content)] ^= 1 << draw.randrange(8)


def overwrite(draw: random.Random, content: bytearray) -> None:
    start = place(draw, content)
    new = draw.randbytes(draw.randint(1, 16))
    content[start : start + len(new)] = new


def write_number(draw: random.Random, content: bytearray) -> None:
    start = draw.choice((0, place(draw, content)))
    content[start : start + 8] = struct.pack("<Q", draw.choice(WEIRD_NUMBERS) % 2**64)


def truncate(draw: random.Random, content: bytearray) -> None:
    del content[place(draw, content) :]


def delete(draw: random.Random, content: bytearray) -> None:
    start = place(draw, content)
    del content[start : start + draw.randint(1, 64)]


def repeat(draw: random.Random, content: bytearray) -> None:
    start = place(draw, content)
    part = content[start : start + draw.randint(1, 64)]
    content[start:start] = part * draw.choice((1, 2, 100))


def clear(draw: random.Random, content: bytearray) -> None:
    start = place(draw, content)
    end = min(len(content), start + draw.randint(1, 512))
    content[start:end] = bytes(end - start)


def append(draw: random.Random, content: bytearray) -> None:
    content += draw.randbytes(draw.randint(1, 32))


BYTE_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip, flip, flip, overwrite, write_number, truncate, delete, repeat, clear, append,
)  # fmt: skip


def mutate_json(draw: random.Random, value: object) -> object:
    """A changed copy: up to three entries replaced, removed, renamed, doubled or put inside each other."""
    root = [copy.deepcopy(value)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        change_entry(draw, *draw.choice(list(list_entries(root))))
    return root[0]


def list_entries(value: object):
    """Every (container, key) of nested JSON."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from list_entries(value[key])


def change_entry(draw: random.Random, holder, key) -> None:
    match draw.randrange(8):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(WEIRD_TEXTS)] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 3:
            for _ in range(draw.choice((1, 40, 400))):
                holder[key] = [holder[key]]
        case 4 if isinstance(holder[key], int | float):
            holder[key] = draw.choice((holder[key] + 1, -holder[key], holder[key] * 1000, str(holder[key])))
        case _:
            holder[key] = copy.deepcopy(draw.choice(WEIRD_VALUES))


def write_json(draw: random.Random, value: object) -> str:
    """JSON as a hostile writer makes it: sometimes with a name twice, or nested until a parser's stack ends."""
    text = json.dumps(value)
    if draw.random() < 0.03:
        text = text.replace("}", ', "seed": 1, "seed": 2}', 1)
    if draw.random() < 0.03:
        text = "[" * 100_000 + text + "]" * 100_000
    return text


def mutate_text(draw: random.Random, text: str, tokens: Sequence[str] = ()) -> str:
    """One to four changes of lines, characters and tokens."""
    for _ in range(draw.randint(1, 4)):
        text = change_text(draw, text, (*tokens, *WEIRD_TEXTS))
    return text


def change_text(draw: random.Random, text: str, tokens: Sequence[str]) -> str:
    start = draw.randrange(len(text) + 1)
    end = min(len(text), start + draw.choice((0, 1, 1, 5, 40)))
    lines = text.split("\n")
    match draw.randrange(6):
        case 0:
            draw.shuffle(lines)
            return "\n".join(lines)
        case 1:
            lines.insert(draw.randrange(len(lines)), draw.choice(lines))
            return "\n".join(lines)
        case 2:
            return text[:start] + text[end:]
        case 3:
            return text[:start] + text[start:end] * draw.choice((2, 3, 50)) + text[end:]
    return text[:start] + draw.choice(tokens) + text[end:]


def mutate_tensors(draw: random.Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A changed copy: one to three tensors with another name, shape, dtype or value."""
    changed = dict(tensors)
    for _ in range(draw.randint(1, 3)):
        if changed:
            change_tensor(draw, changed, draw.choice(list(changed)))
    return changed


def change_tensor(draw: random.Random, tensors: dict[str, Tensor], name: str) -> None:
    tensor = tensors[name]
    match draw.randrange(9):
        case 0:
            del tensors[name]
        case 1:
            tensors[make_odd_name(draw, name)] = tensors.pop(name)
        case 2:
            tensors[make_odd_name(draw, name)] = tensor.clone()
        case 3:
            tensors[name] = tensor.to(draw.choice(DTYPES))
        case 4:
            tensors[name] = tensor.flatten()[: draw.choice((0, 1, 7))].clone()
        case 5:
            tensors[name] = tensor.reshape(*draw.choice(((-1,), (1, -1), (-1, 1, 1, 1), (1, 1, *tensor.shape)))).clone()
        case 6:
            tensors[name] = torch.tensor(draw.choice((0.0, -1.0, 1e30, math.nan)))
        case _:
            flat = tensor.flatten().clone()
            if flat.numel():
                value = draw.choice((math.nan, math.inf, -math.inf, 3e38, 0.0))
                flat[draw.randrange(flat.numel())] = value if flat.is_floating_point() else 0
            tensors[name] = flat.reshape(tensor.shape)


def make_odd_name(draw: random.Random, name: str) -> str:
    """Another name for a tensor, some of a layer that is not there."""
    parts = name.split(".")
    index = draw.randrange(len(parts))
    number = draw.choice(("1", "7", "99999", "-1", "01", "²", str(2**70), "x" * 300, ""))
    return ".".join((*parts[:index], number, *parts[index + draw.randrange(2) :]))


def unpack(content: bytes) -> tuple[dict, bytes]:
    """The header and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def pack(header: str, data: bytes) -> bytes:
    encoded = header.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data


def mutate_header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header says something else, in valid JSON."""
    header, data = unpack(content)
    return pack(write_json(draw, mutate_json(draw, header)), data)


def mutate_file(draw: random.Random, content: bytes, tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file with damage in its bytes, its header or its tensors."""
    match draw.randrange(3):
        case 0:
            return mutate_bytes(draw, content)
        case 1:
            return mutate_header(draw, content)
    metadata = unpack(content)[0].get("__metadata__")
    changed = mutate_tensors(draw, tensors)
    return save({name: tensor.contiguous() for name, tensor in changed.items()}, metadata)
