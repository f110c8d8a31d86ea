"""Distribution matching: what a teacher and a critic say of a clip (Yin et al. 2024, eq. 7; Self-Forcing §3.3).

The critic learns to denoise what the student makes; where the teacher would denoise it otherwise, the student moves
that way. Both see a clip at once, without a memory. Measured on the reference: their flows become clean latents by
the levels of a shift-8 table, noise is added by the student's shift-5 table.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import MAX_STEP
from ..model.causal import CausalWan
from ..model.wan import WanModel
from ..schedule import Schedule, add_noise, clean_from_flow, flow_from_clean
from ..window import Window
from .memory import Call, Memory
from .student import CheckpointedWan

SCORE_SHIFT = 8.0
SHIFT = 5.0  # of the table that noise is added by
EARLIEST, LATEST = 20.0, 980.0  # timesteps a clip is noised to


class Score(nn.Module):
    """A network that denoises whole clips: the teacher, or the critic."""

    def __init__(self, tree: WanModel, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.tree = tree
        self.wan = (CheckpointedWan if checkpointing else CausalWan).of_tree(tree)
        self.schedule = Schedule(SCORE_SHIFT)

    def forward(self, noisy_BFCHW: Tensor, timesteps_B: Tensor, embedding_BLD: Tensor) -> Tensor:
        """The clean latents [B, F, C, H, W] of noisy ones."""
        flow = self.flow(noisy_BFCHW, timesteps_B, embedding_BLD)
        return clean_from_flow(noisy_BFCHW, flow, self.schedule.sigma(timesteps_B).view(-1, 1, 1, 1, 1))

    def flow(self, noisy_BFCHW: Tensor, timesteps_B: Tensor, embedding_BLD: Tensor) -> Tensor:
        """One call over an empty memory whose window is the whole clip: every frame sees every other."""
        frames = noisy_BFCHW.shape[1]
        window = Window(0, frames)
        call = Call(Memory.empty(self.wan.geometry.num_layers), window, moves_sink=False)
        timesteps_BF = timesteps_B.float()[:, None].expand(-1, frames)
        text = self.wan.read(embedding_BLD)
        flow = self.wan.forward(noisy_BFCHW.to(self.wan.dtype), timesteps_BF, text, call, window.block(0, frames))
        assert flow is not None
        return flow.to(noisy_BFCHW.dtype)


@dataclass(frozen=True, slots=True)
class Noising:
    """How noisy a clip is shown to the score networks."""

    timesteps_B: Tensor  # 0..1000
    noise_BFCHW: Tensor

    @classmethod
    def of(cls, index_B: Tensor, noise_BFCHW: Tensor) -> "Noising":
        """From whole numbers 0..999, bent as the student's schedule is."""
        plain = index_B.float() / MAX_STEP
        bent = SHIFT * plain / (1 + (SHIFT - 1) * plain) * MAX_STEP
        return cls(bent.clamp(EARLIEST, LATEST), noise_BFCHW)

    @property
    def sigma_B1111(self) -> Tensor:
        return Schedule(SHIFT).sigma(self.timesteps_B).view(-1, 1, 1, 1, 1)

    def of_clip(self, clip_BFCHW: Tensor) -> Tensor:
        return add_noise(clip_BFCHW, self.noise_BFCHW, self.sigma_B1111)


@dataclass(frozen=True, slots=True)
class Judged:
    """A clip and what it is judged by."""

    clip_BFCHW: Tensor
    is_new_F: Tensor  # bool: the frames that count
    embedding_BLD: Tensor

    def mean_of(self, squares_BFCHW: Tensor) -> Tensor:
        """Over the elements that count."""
        return squares_BFCHW[:, self.is_new_F].mean()


def student_loss(
    teacher: Score,
    critic: nn.Module,
    judged: Judged,
    unprompted_BLD: Tensor,
    noising: Noising,
    *,
    guidance: float,
) -> tuple[Tensor, Tensor]:
    """Half the mean square to where the score networks point, float64, and how far that is [scalar].

    Its gradient with respect to the clip is (critic - teacher) / mean |clip - teacher| over the number of elements.
    """
    clip = judged.clip_BFCHW.detach()
    with torch.no_grad():
        noisy = noising.of_clip(clip)
        fake = critic(noisy, noising.timesteps_B, judged.embedding_BLD)
        prompted = teacher(noisy, noising.timesteps_B, judged.embedding_BLD)
        unprompted = teacher(noisy, noising.timesteps_B, unprompted_BLD)
        real = prompted + guidance * (prompted - unprompted)
        distance_B = (clip - real).abs().mean((1, 2, 3, 4), keepdim=True)
        gradient = ((fake - real) / distance_B).nan_to_num()
    target = (judged.clip_BFCHW.double() - gradient.double()).detach()
    return 0.5 * judged.mean_of((judged.clip_BFCHW.double() - target).square()), gradient.abs().mean()


def critic_loss(critic: nn.Module, judged: Judged, noising: Noising) -> Tensor:
    """The flow-matching loss of the critic on what the student made."""
    clip = judged.clip_BFCHW.detach()
    noisy = noising.of_clip(clip)
    clean = critic(noisy, noising.timesteps_B, judged.embedding_BLD)
    flow = flow_from_clean(noisy, clean, noising.sigma_B1111)
    return judged.mean_of((flow - (noising.noise_BFCHW - clip)).square())
