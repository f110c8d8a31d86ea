"""From words to embeddings: hashed words that need nothing, and umT5 from a folder, a tiny random one here."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive.errors import WeightsError
from longlive.model.text_encoder import TEXT_DIM, UMT5, HashedWords, clean_prompt
from longlive.model.wan import TEXT_LEN

CPU = torch.device("cpu")


def test_a_word_is_a_row_and_rows_past_the_words_are_zero():
    embedding = HashedWords(rows=7, width=5)("A red fox, red!")
    assert embedding.shape == (1, 7, 5)
    assert embedding[0, :4].ne(0).any(-1).all()
    assert embedding[0, 4:].eq(0).all()
    assert torch.equal(embedding[0, 1], embedding[0, 3])
    assert not torch.equal(embedding[0, 0], embedding[0, 1])


def test_the_released_shape_is_the_default():
    assert HashedWords()("fox").shape == (1, TEXT_LEN, TEXT_DIM) == (1, 512, 4096)


def test_no_words_are_zeros_and_too_many_are_cut():
    encoder = HashedWords(rows=3, width=5)
    assert encoder(" ,.! ").eq(0).all()
    assert torch.equal(encoder("a b c d e"), encoder("a b c"))


def test_case_and_punctuation_do_not_matter_but_order_does():
    encoder = HashedWords(rows=4, width=5)
    assert torch.equal(encoder("Der FÜCHSE Bau"), encoder("der füchse, bau."))
    assert not torch.equal(encoder("fox red"), encoder("red fox"))


def test_hashed_words_are_the_same_in_every_process_and_release():
    """Golden numbers; Python's own hash of a string differs from process to process."""
    golden = torch.tensor([0.125531778, -0.102119319, -0.437272996, -0.222684875, 0.323774248, -0.215754941])
    torch.testing.assert_close(HashedWords(rows=2, width=6)("fox")[0, 0], golden, rtol=0, atol=1e-7)


def test_hashed_words_are_normal_vectors_of_a_quarter():
    embedding = HashedWords(rows=8, width=4096)("a b c d e f g h")
    assert embedding.std().item() == pytest.approx(0.25, rel=0.02)
    assert abs(embedding.mean().item()) < 0.01


def test_hashed_words_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    HashedWords(rows=2, width=6)("fox")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_is_mended_and_its_spaces_are_single():
    assert clean_prompt("  a\tfox \n\n runs ") == "a fox runs"
    assert clean_prompt("salt &amp;amp; pepper &lt;3") == "salt & pepper <3"
    assert clean_prompt("cafÃ©") == "café"


def test_a_prompt_is_cleaned_without_ftfy_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_prompt(" a &amp;  b ") == "a & b"


@pytest.fixture(scope="module")
def encoder(pipeline) -> UMT5:
    return UMT5.of_pipeline(pipeline, device=CPU, dtype=torch.float32)


def test_umt5_gives_512_rows_zero_past_the_prompt(encoder):
    embedding = encoder("a red fox")
    assert embedding.shape == (1, 512, 16)
    assert embedding[0, :4].ne(0).any(-1).all()  # three words and the end
    assert embedding[0, 4:].eq(0).all()


def test_umt5_does_not_see_the_padding(encoder):
    """The mask reaches the encoder: a prompt is encoded as it would be alone."""
    alone = encoder.encoder(torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    torch.testing.assert_close(encoder("a red fox")[:, :4], alone, rtol=1e-4, atol=1e-5)


def test_umt5_reads_the_cleaned_prompt(encoder):
    assert torch.equal(encoder(" a  red &amp; fox "), encoder("a red & fox"))
    assert not torch.equal(encoder("a red fox"), encoder("a fox red"))


def test_umt5_cuts_what_is_too_long(encoder):
    embedding = encoder("fox " * 600)
    assert embedding.shape == (1, 512, 16)
    assert embedding[0, -1].ne(0).any()


def test_umt5_is_frozen_and_in_the_dtype_asked_for(pipeline):
    encoder = UMT5.of_pipeline(pipeline, device=CPU, dtype=torch.bfloat16)
    assert not encoder.encoder.training
    assert not any(weight.requires_grad for weight in encoder.encoder.parameters())
    embedding = encoder("fox")
    assert (embedding.dtype, embedding.requires_grad) == (torch.bfloat16, False)


@pytest.mark.parametrize("missing", ["text_encoder", "tokenizer"])
def test_a_folder_that_lacks_a_part_is_refused(tmp_path, missing):
    for part in {"text_encoder", "tokenizer"} - {missing}:
        (tmp_path / part).mkdir()
    with pytest.raises(WeightsError, match=f"has no {missing}/ folder; give a diffusers-format Wan2.1 folder"):
        UMT5.of_pipeline(tmp_path, device=CPU, dtype=torch.float32)


def test_a_name_of_a_folder_may_be_text_and_longer_than_a_disk_allows():
    with pytest.raises(WeightsError, match=r"has no text_encoder/ folder"):
        UMT5.of_pipeline("x" * 300, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("damage", ["no config", "no weights", "truncated weights", "no tokenizer", "config no JSON"])
def test_a_damaged_folder_is_refused(pipeline, tmp_path, damage):
    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    weights = folder / "text_encoder" / "model.safetensors"
    match damage:
        case "no config":
            (folder / "text_encoder" / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-10])
        case "no tokenizer":
            for file in (folder / "tokenizer").iterdir():
                file.unlink()
        case "config no JSON":
            (folder / "text_encoder" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"the text encoder in .* cannot be loaded"):
        UMT5.of_pipeline(folder, device=CPU, dtype=torch.float32)


def test_weights_that_lack_a_tensor_are_refused(pipeline, tmp_path):
    """transformers would fill it with random numbers and say so in its log."""
    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(WeightsError):
        UMT5.of_pipeline(folder, device=CPU, dtype=torch.float32)


def test_without_transformers_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"needs transformers, .*; pip install diffusers transformers"):
        UMT5.of_pipeline(tmp_path, device=CPU, dtype=torch.float32)
