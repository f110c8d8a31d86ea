"""The identity of tensors: a SHA-256 over names, dtypes, shapes and bytes."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

HASHING_THREADS = 4
TENSORS_HELD = 16  # of a stream


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        sha.update(len(head).to_bytes(8, "little") + head)
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    return sha.hexdigest()


def hash_stream(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the digests of many tensors by name, in whatever order they come.

    A few are hashed at a time, each in a thread (hashlib lets others run), and no more are held.
    """
    stream, digests = iter(tensors), {}
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        while batch := dict(itertools.islice(stream, TENSORS_HELD)):
            digests |= zip(batch, pool.map(hash_tensors, ({"": tensor} for tensor in batch.values())), strict=True)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def hash_facts(facts: Sequence[object]) -> str:
    """SHA-256 over facts, as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
