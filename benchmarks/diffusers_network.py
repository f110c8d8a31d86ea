"""The Wan network of diffusers."""

import importlib.util
import re

import torch
from contenders import Contender, OtherNetwork, Task
from torch import Tensor

NAMES = (  # ours, theirs
    ("self_attn.", "attn1."),
    ("cross_attn.", "attn2."),
    (".o.", ".to_out.0."),
    ("norm3", "norm2"),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("head.head.", "proj_out."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
)


class DiffusersNetwork(OtherNetwork):
    """`WanTransformer3DModel`, which has no KV cache: all frames of a clip attend each other in every step.

    A clip of one block is therefore the first block of a video. A longer clip is another computation than a video of
    blocks; it is the nearest that diffusers has.
    """

    is_causal = can_switch = False

    def __init__(self, task: Task) -> None:
        from diffusers import WanTransformer3DModel

        super().__init__(task)
        geometry = task.geometry
        self.network = WanTransformer3DModel(
            num_attention_heads=geometry.num_heads, attention_head_dim=geometry.head_dim, in_channels=geometry.in_dim,
            out_channels=geometry.out_dim, text_dim=geometry.text_dim, freq_dim=geometry.freq_dim,
            ffn_dim=geometry.ffn_dim, num_layers=geometry.num_layers,
        )  # fmt: skip
        self.network.load_state_dict({translate(name): weight for name, weight in task.tree.state_dict().items()})
        kept = set(WanTransformer3DModel._keep_in_fp32_modules)  # as its `from_pretrained` does
        for name, weight in self.network.requires_grad_(False).to(task.device).named_parameters():
            weight.data = weight.data if kept & {*name.split(".")} else weight.data.to(task.dtype)

    def start_video(self) -> None:
        self.latents = []

    def keep(self, latents: Tensor) -> None:
        Contender.keep(self, latents)

    def make_clip(self) -> Tensor:
        """Make a window of frames at once."""
        blocks = range(self.task.config.window // self.task.config.block)
        return self.remove_noise(lambda step: torch.cat([self.task.noise(block, step) for block in blocks], 1))

    @torch.no_grad()
    def run_pass(self, x_BFCHW: Tensor, timestep: float, start: int) -> Tensor:
        text = self.task.prompt_BLD.to(self.task.device, self.task.dtype)
        times = torch.full((1,), timestep, device=self.task.device)
        return self.network(x_BFCHW.transpose(1, 2), times, text, return_dict=False)[0].transpose(1, 2)


def is_installed() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def translate(name: str) -> str:
    """Translate a released name into the one of diffusers."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    name = re.sub(r"\.([qkv])\.", r".to_\1.", name)
    return name.removeprefix("head.").replace("modulation", "scale_shift_table")
