"""How much memory a GPU needs at 832 x 480, counted. PyTorch's own part, about half a gigabyte, comes on top."""

from dataclasses import dataclass

import torch
from true_size import NetworkWork, count_weight_bytes
from work_counter import Work

from longlive.model.causal import CausalWan
from longlive.rollout.sampler import PROMPTS_HELD, count_text_bytes


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

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.busy
