"""Replays of recorded parts of the reference: rotary positions, the schedule, the VAE (`verify.py` compares)."""

import torch
from torch import Tensor

from ..config import MAX_STEP
from ..model import rope
from ..model.causal import make_sinusoid
from ..model.vae import Past, WanVAE
from ..model.vae_streams import StreamingDecoder, decode, encode, split_passes
from ..rollout.schedule import Schedule, add_noise, convert_clean_to_flow, convert_flow_to_clean
from .recorded_run import RecordedRun


def replay_rotations(run: RecordedRun) -> dict[str, Tensor]:
    """Replay rotary tables and rotations, and the timestep sinusoid."""
    frames, rows, columns = run.tensors["in.grid"].tolist()
    grid, found = (rows, columns), {}
    for head_dim in run.read_values("head_dims"):
        x = run.tensors[f"in.x.{head_dim}"]
        angles = torch.outer(run.tensors["in.rows"].double(), torch.cat(rope.make_frequencies(head_dim)))
        found[f"freqs.{head_dim}"] = torch.stack([angles.cos(), angles.sin()], -1)

        def rotate_at(x: Tensor, positions: list[int], head_dim: int = head_dim) -> Tensor:
            return rope.rotate(x, torch.cat([rope.make_table(p, 1, grid, head_dim, x.device) for p in positions]))

        for start in run.read_values("starts"):
            at = list(range(start, start + frames))
            found[f"out.start{start}.{head_dim}"] = rotate_at(x, at)
            found[f"out.start{start}_bf16.{head_dim}"] = rotate_at(x.bfloat16(), at)
        found[f"out.relative.{head_dim}"] = rotate_at(x, run.tensors["in.relative"].tolist())
        found[f"out.bidir.{head_dim}"] = rotate_at(x, list(range(frames)))
    found["out.sinusoid"] = make_sinusoid(run.tensors["in.t"], run.read_number("freq_dim"))
    return found


def replay_schedules(run: RecordedRun) -> dict[str, Tensor]:
    """Replay tables, warped steps, and the three conversions, which were recorded with the first shift."""
    found = {}
    for shift in run.read_values("shifts"):
        schedule = Schedule(shift)
        found |= {
            f"shift{shift:g}.sigmas": schedule.sigmas,
            f"shift{shift:g}.timesteps": schedule.timesteps,
            f"shift{shift:g}.weights": compute_training_weights(schedule),
            f"shift{shift:g}.warped": schedule.warp(tuple(run.read_values("config_steps"))),
        }
    x, n = run.tensors["in.x"], run.tensors["in.n"]
    sigma = Schedule(run.read_values("shifts")[0]).sigma(run.tensors["in.t"]).view(-1, *[1] * (x.ndim - 1))
    found["out.flow_from_x0"] = convert_clean_to_flow(x, n, sigma)
    for suffix, dtype in (("", torch.float32), ("_bf16", torch.bfloat16)):
        found[f"out.add_noise{suffix}"] = add_noise(x.to(dtype), n.to(dtype), sigma)
        found[f"out.x0_from_flow{suffix}"] = convert_flow_to_clean(x.to(dtype), n.to(dtype), sigma)
    return found


def compute_training_weights(schedule: Schedule) -> Tensor:
    """Compute the bell-shaped training weights [1000] of Self-Forcing's scheduler. DMD does not use them."""
    bell = torch.exp(-2 * ((schedule.timesteps - MAX_STEP / 2) / MAX_STEP) ** 2)
    bell = bell - bell.min()
    return bell * (MAX_STEP / bell.sum())


def replay_vae(run: RecordedRun) -> dict[str, Tensor]:
    """Replay decodes, whole, streamed and in chunks, and encodes (tests/reference/README.md).

    The whole decode was recorded before its clamp.
    """
    model, latents = WanVAE.of_weights(run.select("sd.")), run.tensors["in.latent"]
    decoder = StreamingDecoder(model)
    slices = latents.split(run.tensors["in.stream_slices"].tolist(), dim=1)
    chunks = latents.split(run.read_number("chunk"), dim=1)
    past = Past()
    unclamped = [
        model.decode_next(piece, past) for piece in split_passes(latents, has_begun=False, at_once=latents.shape[1])
    ]
    found = {
        "out.decode_raw": torch.cat(unclamped, 1),
        "out.stream_lengths": torch.tensor([decoder.push(part).shape[1] for part in slices]),
        "out.decode_chunked_tail": torch.cat([decode(model, chunk) for chunk in chunks[1:]], 1),
    }
    pixels_BFCHW = run.tensors["in.pixel"].transpose(1, 2)
    for frames in run.read_values("encode_frames"):
        found[f"out.encode.{frames}"] = encode(model, pixels_BFCHW[:, :frames])
    return found
