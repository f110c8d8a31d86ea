"""The miniature is tuned: two chunks of a video, one for the student and one for its critic, with its own teacher."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from longlive.cli.main import main
from longlive.errors import TuningError
from longlive.miniature.files import DIT, WEIGHTS_FOLDER, load_miniature
from longlive.miniature.tuning import load_miniature_parts, make_pairs
from longlive.tuning.config import DataConfig, ModelConfig, TuneConfig
from longlive.tuning.load import CachedEncoder, embed_unpadded
from longlive.tuning.run import ADAPTER_FILE, METRICS_FILE
from longlive.weights.lora import Lora

TWO_CHUNKS = """
[model]
miniature = true
[rollout]
positions = "unbounded"
[stream]
length = 39
anchored_on = 4
[learn]
rank = 8
alpha = 8
rate = 1e-3
checkpointing = false
precision = "fp32"
[run]
steps = 1
sample_every = {sample_every}
offload = false
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """The folder of a tuning of one step."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tune.toml").write_text(TWO_CHUNKS.format(sample_every=1), encoding="utf-8")
    AcceleratorState._reset_state(True)
    assert main(["tune", str(folder / "tune.toml"), "--folder", str(folder)]) == 0
    return folder


def test_two_chunks_leave_an_adapter_a_curve_and_a_sample(tuned):
    line = json.loads((tuned / METRICS_FILE).read_text().splitlines()[0])
    assert line["step"] == 1
    assert 0 < line["student"] < 10
    assert 0 < line["critic"] < 10
    assert (tuned / "sample-000001.mp4").stat().st_size > 1000


def test_the_adapter_changes_what_the_miniature_makes(tuned):
    plain, adapted = load_miniature().model.tree, load_miniature(lora=tuned / ADAPTER_FILE).model.tree
    names = [name for name, _ in plain.named_parameters() if "blocks" in name and name.endswith("attn.q.weight")]
    assert any(not torch.equal(plain.get_parameter(name), adapted.get_parameter(name)) for name in names)


def test_the_adapter_in_the_pack_is_one_for_every_linear_of_the_layers():
    lora = Lora.read(WEIGHTS_FOLDER / "longlive_miniature_tuned.safetensors")
    assert len(lora.pairs) == 10 * load_miniature().model.geometry.num_layers
    assert (lora.ranks, lora.alphas) == ((32,), (32.0,))
    assert all(pair.up.abs().max() > 0 for pair in lora.pairs.values())


def test_a_finished_tuning_is_not_made_again(tuned, caplog):
    caplog.set_level("INFO", logger="longlive.tuning.run")
    before = (tuned / METRICS_FILE).read_text()
    AcceleratorState._reset_state(True)
    assert main(["tune", str(tuned / "tune.toml"), "--folder", str(tuned)]) == 0
    assert "resumed at step 1" in caplog.text
    assert (tuned / METRICS_FILE).read_text() == before


def test_the_miniatures_own_pairs_are_of_its_grammar():
    pairs = make_pairs(20)
    assert len({pair.first for pair in pairs}) > 15
    assert all("from the" not in pair.second for pair in pairs)


def test_every_setting_is_used_or_said_to_be_ignored(tmp_path, caplog):
    for name, prompt in (("first", "a red ring moves left at night"), ("second", "a blue ring moves left at night")):
        (tmp_path / f"{name}.txt").write_text(prompt)
    lora = WEIGHTS_FOLDER / "longlive_miniature_tuned.safetensors"
    config = TuneConfig(
        model=ModelConfig(miniature=True, lora=str(lora), critic=str(DIT)),
        data=DataConfig(
            prompts=str(tmp_path / "first.txt"), switched=str(tmp_path / "second.txt"), width=128, height=128
        ),
    )
    plain, parts = load_miniature_parts(TuneConfig(model=ModelConfig(miniature=True))), load_miniature_parts(config)
    weight = "blocks.0.self_attn.q.weight"
    assert not torch.equal(parts.student.get_parameter(weight), plain.student.get_parameter(weight))
    assert torch.equal(parts.critic.get_parameter(weight), plain.student.get_parameter(weight))
    assert not torch.equal(parts.pairs[0].first, parts.pairs[0].second)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "width and height are ignored: the miniature's videos are 64 x 64"


def test_a_prompt_is_embedded_once(tmp_path):
    asked = []

    class Encoder:
        def __call__(self, prompt: str) -> torch.Tensor:
            asked.append(prompt)
            return torch.ones(1, 4, 8)

    for _ in range(2):
        encoder = CachedEncoder(tmp_path, "umt5", Encoder)
        assert embed_unpadded(encoder, "a fox").shape == (4, 8)
        encoder.close()
    assert asked == ["a fox"]


def test_an_embedding_that_cannot_be_written_is_a_tuning_error(tmp_path):
    (tmp_path / "file").touch()
    encoder = CachedEncoder(tmp_path / "file" / "embeddings", "umt5", lambda: lambda prompt: torch.ones(1, 4, 8))
    with pytest.raises(TuningError, match=r"the embedding of a prompt cannot be written to .*; free some space or"):
        encoder("a fox")
