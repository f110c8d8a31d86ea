"""The identity of tensors: a SHA-256 over names, dtypes, shapes and bytes."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

HASHING_THREADS = 4
TENSORS_HELD = 16  # in memory at a time while a stream is hashed


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 over name, dtype, shape and bytes of each tensor, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        sha.update(len(head).to_bytes(8, "little") + head)
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    return sha.hexdigest()


def hash_content(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 over what a file holds: a text, and tensors by name."""
    return hashlib.sha256(f"{text} {hash_tensors(tensors)}".encode()).hexdigest()


def hash_stream(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Compute the SHA-256 over the names and digests of many tensors. The order they come in does not matter.

    Holds at most TENSORS_HELD tensors; threads hash them in parallel (hashlib releases Python's lock).
    """
    stream, digests = iter(tensors), {}
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        while batch := dict(itertools.islice(stream, TENSORS_HELD)):
            digests |= zip(batch, pool.map(hash_tensors, ({"": tensor} for tensor in batch.values())), strict=True)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def hash_facts(facts: Sequence[object]) -> str:
    """Compute the SHA-256 over a list of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
