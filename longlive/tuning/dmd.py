"""Distribution matching distillation: the losses of student and critic.

The gradient is Yin et al.'s eq. 7, its weight eq. 8 (arXiv 2311.18828; see also Self-Forcing §3.3). The critic learns
to denoise the student's clips. The student moves from what the critic makes of a noisy clip towards what the teacher
makes of it. Both see a whole clip at once, without a KV cache. Noise is added with the student's table (the
released shift is 5), but flows become clean latents with one of shift 8, as in the reference (measured).

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import MAX_STEP
from ..model.causal import CausalWan
from ..model.wan import WanModel
from ..rollout.schedule import Schedule, add_noise, convert_clean_to_flow, convert_flow_to_clean
from ..rollout.window import Window
from .graph_cache import GraphCache, GraphPass
from .student import CheckpointedWan

SCORE_SHIFT = 8.0  # of the table that turns flows into clean latents
MIN_TIMESTEP, MAX_TIMESTEP = 20.0, 980.0  # of a noisy clip


class Score(nn.Module):
    """A network that denoises whole clips: the teacher or the critic."""

    def __init__(self, tree: WanModel, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.tree = tree
        self.wan = (CheckpointedWan if checkpointing else CausalWan).of_tree(tree)
        self.schedule = Schedule(SCORE_SHIFT)

    def forward(self, noisy_BFCHW: Tensor, timesteps_B: Tensor, embedding_BLD: Tensor) -> Tensor:
        """Denoise latents; return the clean ones [B, F, C, H, W]."""
        flow = self.compute_flow(noisy_BFCHW, timesteps_B, embedding_BLD)
        return convert_flow_to_clean(noisy_BFCHW, flow, self.schedule.sigma(timesteps_B).view(-1, 1, 1, 1, 1))

    def compute_flow(self, noisy_BFCHW: Tensor, timesteps_B: Tensor, embedding_BLD: Tensor) -> Tensor:
        """Compute the flow of a clip in one pass: the cache is empty and every frame attends all frames of the clip."""
        frames = noisy_BFCHW.shape[1]
        window = Window(0, frames)
        graph_pass = GraphPass(GraphCache.empty(self.wan.geometry.num_layers), window, moves_sink=False)
        timesteps_BF = timesteps_B.float()[:, None].expand(-1, frames)
        text = self.wan.read_prompt(embedding_BLD)
        place = window.place_block(0, frames)
        flow = graph_pass.run(self.wan, noisy_BFCHW.to(self.wan.dtype), timesteps_BF, text, place)
        return flow.to(noisy_BFCHW.dtype)


@dataclass(frozen=True, slots=True)
class ClipNoise:
    """The noise under which the score networks see a clip."""

    timesteps_B: Tensor  # 0..1000
    noise_BFCHW: Tensor
    shift: float  # of the table that noise is added with: the student's

    @classmethod
    def of_index(cls, index_B: Tensor, noise_BFCHW: Tensor, shift: float) -> "ClipNoise":
        """Warp integers 0..999 by the student's shift into timesteps."""
        plain = index_B.float() / MAX_STEP
        warped = shift * plain / (1 + (shift - 1) * plain) * MAX_STEP
        return cls(warped.clamp(MIN_TIMESTEP, MAX_TIMESTEP), noise_BFCHW, shift)

    @property
    def sigma_B1111(self) -> Tensor:
        return Schedule(self.shift).sigma(self.timesteps_B).view(-1, 1, 1, 1, 1)

    def add_to(self, latents_BFCHW: Tensor) -> Tensor:
        return add_noise(latents_BFCHW, self.noise_BFCHW, self.sigma_B1111)


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """A clip for the score networks: its latents, which of its frames are new, and its prompt."""

    latents_BFCHW: Tensor
    is_new_F: Tensor  # bool
    embedding_BLD: Tensor

    def average_new(self, squares_BFCHW: Tensor) -> Tensor:
        """Average over the new frames: only they count in a loss."""
        return squares_BFCHW[:, self.is_new_F].mean()


def compute_student_loss(
    teacher: Score,
    critic: nn.Module,
    clip: ScoredClip,
    unprompted_BLD: Tensor,
    clip_noise: ClipNoise,
    *,
    guidance: float,
) -> tuple[Tensor, Tensor]:
    """Return a loss, float64, whose gradient is that of the method, and the mean size of this gradient [scalar].

    The gradient of a latent is (critic - teacher) / mean |clip - teacher|, the mean over all frames of a video. The
    loss is half its mean square over the new frames, so only these have a gradient, divided by their number of values.
    A score network that gives NaN or infinity in any frame makes the loss NaN.
    """
    latents = clip.latents_BFCHW.detach()
    with torch.no_grad():
        noisy = clip_noise.add_to(latents)
        fake = critic(noisy, clip_noise.timesteps_B, clip.embedding_BLD)
        prompted = teacher(noisy, clip_noise.timesteps_B, clip.embedding_BLD)
        unprompted = teacher(noisy, clip_noise.timesteps_B, unprompted_BLD)
        real = prompted + guidance * (prompted - unprompted)
        distance_B = (latents - real).abs().mean((1, 2, 3, 4), keepdim=True)
        difference = fake - real
        gradient = (difference / distance_B).nan_to_num()  # 0 / 0 where a clip is what the teacher makes of it
        gradient = torch.where(difference.isfinite().all(), gradient, torch.nan)  # a broken network must be noticed
    target = (clip.latents_BFCHW.double() - gradient.double()).detach()
    return 0.5 * clip.average_new((clip.latents_BFCHW.double() - target).square()), gradient.abs().mean()


def compute_critic_loss(critic: nn.Module, clip: ScoredClip, clip_noise: ClipNoise) -> Tensor:
    """Return the flow-matching loss of the critic on a clip of the student."""
    latents = clip.latents_BFCHW.detach()
    noisy = clip_noise.add_to(latents)
    clean = critic(noisy, clip_noise.timesteps_B, clip.embedding_BLD)
    flow = convert_clean_to_flow(noisy, clean, clip_noise.sigma_B1111)
    return clip.average_new((flow - (clip_noise.noise_BFCHW - latents)).square())
