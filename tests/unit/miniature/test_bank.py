"""The bank of encoded clips: encoded once, in parts, and the same however often that was stopped."""

import pytest
import torch

from longlive.errors import WeightsError
from longlive.miniature.training import bank
from longlive.miniature.training.bank import FIRST_BLOCKS, encode_clips, make_clip, open_bank, open_latents
from longlive.model.vae import WanVAE

FRAMES = 3
PLAN = {(): (5, FRAMES), (1,): (3, FRAMES)}


@pytest.fixture
def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(2).requires_grad_(False)


def test_what_is_encoded_already_is_not_encoded_again(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "LATENTS_PER_FILE", 2 * FRAMES)  # two clips a file
    whole = open_bank(tmp_path / "whole", vae, PLAN)
    assert [encoded.latents.shape for encoded in whole.values()] == [(5, FRAMES, 16, 8, 8), (3, FRAMES, 16, 8, 8)]

    counts = []

    def encode_and_stop(vae, clips, frames):
        if sum(counts) >= 4:
            raise KeyboardInterrupt
        counts.append(len(clips))
        return encode_clips(vae, clips, frames)

    monkeypatch.setattr(bank, "encode_clips", encode_and_stop)
    with pytest.raises(KeyboardInterrupt):
        open_bank(tmp_path / "stopped", vae, PLAN)
    assert counts == [2, 2]
    counts.clear()
    monkeypatch.setattr(
        bank,
        "encode_clips",
        lambda vae, clips, frames: (counts.append(len(clips)), encode_clips(vae, clips, frames))[1],
    )
    resumed = open_bank(tmp_path / "stopped", vae, PLAN)
    assert counts == [1, 2, 1]
    for pattern, encoded in whole.items():
        assert resumed[pattern].clips == encoded.clips
        assert torch.equal(resumed[pattern].latents, encoded.latents)


def test_latents_of_another_number_of_clips_are_refused(vae, tmp_path):
    clips = [make_clip((), number) for number in range(2)]
    open_latents(tmp_path, "film", vae, clips, FRAMES)
    with pytest.raises(WeightsError, match="was made with another recipe"):
        open_latents(tmp_path, "film", vae, clips[:1], FRAMES)


def test_only_first_blocks_begin_where_their_prompt_says():
    assert {make_clip(FIRST_BLOCKS, number).shift for number in range(20)} == {(0, 0)}
    assert len({make_clip((), number).shift for number in range(20)}) > 10


def test_unseen_clips_are_others():
    assert make_clip((), 0) == make_clip((), 0)
    assert make_clip((), 0, kind="unseen") != make_clip((), 0)
