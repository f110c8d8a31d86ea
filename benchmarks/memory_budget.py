"""How much memory a GPU needs at 832 x 480, counted. PyTorch's own part, about half a gigabyte, comes on top."""

from dataclasses import dataclass, replace

import torch
from true_size import HEIGHT, WIDTH, NetworkWork, count_weight_bytes
from work_counter import Work

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.rollout.sampler import PROMPTS_HELD, count_cache_bytes, count_text_bytes

SCALE_BYTES = 4  # of a token's keys, or values, in a head of 8 bits


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The bytes of a part of the work."""

    weights: int
    kept: int  # from pass to pass: the KV cache and the keys of prompts, or what convolutions saw
    busy: int  # the most that a pass adds

    @classmethod
    def of_sampling(cls, model: CausalWan, work: NetworkWork) -> "MemoryBudget":
        passes = (work.steps, work.clean_pass, work.recache)
        kept = max(each.held_bytes for each in passes) + (PROMPTS_HELD - 1) * count_text_bytes(model)
        return cls(count_weight_bytes(model.tree), kept, max(each.busy_bytes for each in passes))

    @classmethod
    def of_decoding(cls, vae: torch.nn.Module, work: Work) -> "MemoryBudget":
        return cls(count_weight_bytes(vae), work.held_bytes, work.busy_bytes)

    def __add__(self, other: "MemoryBudget") -> "MemoryBudget":
        """Return the bytes of two parts that stay loaded and work in turn."""
        return MemoryBudget(self.weights + other.weights, self.kept + other.kept, max(self.busy, other.busy))

    def unload_between(self, other: "MemoryBudget") -> "MemoryBudget":
        """Return the bytes of two parts of which each is unloaded before the other is loaded."""
        return max(self, other, key=lambda budget: budget.total)

    def shrink_cache(self, model: CausalWan, config: RolloutConfig) -> "MemoryBudget":
        """Return the bytes as if keys and values had 8 bits, a scale for each token and head: nothing computes so."""
        whole = count_cache_bytes(model, config, HEIGHT, WIDTH)
        numbers = whole // model.dtype.itemsize
        shrunk = numbers + numbers // model.geometry.head_dim * SCALE_BYTES
        return replace(self, kept=self.kept - whole + shrunk)

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.busy
