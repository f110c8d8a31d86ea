"""CLIP scores, by a tiny random model."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive.errors import ScriptError, WeightsError
from longlive.evaluation.clip_score import ClipScorer
from longlive.evaluation.evaluate import evaluate_video
from longlive.session.timeline import Segment
from longlive.video.writer import VideoWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "runs"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0},
        vision_config=sizes | {"image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_a_score_is_the_models_own(folder):
    scorer = ClipScorer.of_folder(folder)
    square = torch.randint(256, (2, 24, 24, 3), dtype=torch.uint8)
    pictures, prompt = scorer.embed_pictures(square), scorer.embed_prompt("a red fox")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    whole = scorer.model(
        input_ids=scorer.tokenizer("a red fox", return_tensors="pt").input_ids,
        pixel_values=((square / 255 - mean) / std).permute(0, 3, 1, 2),
    )
    torch.testing.assert_close(pictures, whole.image_embeds)
    torch.testing.assert_close(prompt, whole.text_embeds[0])


def test_of_a_wide_picture_the_middle_is_seen(folder):
    scorer = ClipScorer.of_folder(folder)
    wide = torch.randint(256, (1, 24, 40, 3), dtype=torch.uint8)
    torch.testing.assert_close(scorer.embed_pictures(wide), scorer.embed_pictures(wide[:, :, 8:32]))


def test_every_segment_has_a_score(folder, tmp_path):
    with VideoWriter(tmp_path / "fox.mp4") as writer:
        writer.write(torch.rand(33, 3, 32, 48) * 2 - 1)
    segments = [Segment("a red fox", 2), Segment("a fox runs", 1)]
    report = evaluate_video(tmp_path / "fox.mp4", segments, ClipScorer.of_folder(folder))
    scores = [row["CLIP score"] for row in report.tables[0].as_dict()["rows"]]
    assert scores[0] != scores[1]
    assert all(-100 <= score <= 100 for score in scores)
    with pytest.raises(ScriptError, match="there are none; give the script"):
        evaluate_video(tmp_path / "fox.mp4", scorer=ClipScorer.of_folder(folder))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"has no config\.json; give the folder of a CLIP model"):
        ClipScorer.of_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        ClipScorer.of_folder(tmp_path)


def test_a_folder_that_lacks_tensors_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"the CLIP model in .* lacks visual_projection\.weight; download it again"):
        ClipScorer.of_folder(tmp_path)


def test_without_transformers_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match="pip install transformers"):
        ClipScorer.of_folder(tmp_path)
