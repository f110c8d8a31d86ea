"""The files of a tuning: known by their content, so that other ones are another tuning."""

import shutil
from pathlib import Path

import pytest

from longlive.errors import ConfigError
from longlive.tuning.config import DataConfig, ModelConfig, TuneConfig
from longlive.tuning.load import digest_text_encoder, identify_files


@pytest.fixture
def config(tmp_path) -> TuneConfig:
    for name in ("weights", "teacher", "prompts"):
        (tmp_path / name).write_text(name)
    for part in ("text_encoder", "tokenizer", "vae"):
        (tmp_path / "pipeline" / part).mkdir(parents=True)
        (tmp_path / "pipeline" / part / "config.json").write_text(part)
    names = {name: str(tmp_path / name) for name in ("weights", "teacher", "pipeline")}
    return TuneConfig(model=ModelConfig(**names), data=DataConfig(prompts=str(tmp_path / "prompts")))


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("weights", "model.weights"),
        ("teacher", "model.teacher"),
        ("prompts", "data.prompts"),
        ("pipeline/vae/config.json", "model.pipeline"),
        ("pipeline/tokenizer/config.json", "model.pipeline"),
    ],
)
def test_a_file_that_was_replaced_is_another_setting(config, tmp_path, file, setting):
    before = identify_files(config, None).as_fixed_settings()
    assert identify_files(config, None).as_fixed_settings() == before
    (tmp_path / file).write_text("another one")
    after = identify_files(config, None).as_fixed_settings()
    assert [name for name in before if before[name] != after[name]] == [setting]


def test_a_file_that_was_moved_is_the_same_setting(config, tmp_path):
    before = identify_files(config, None)
    moved = shutil.move(tmp_path / "weights", tmp_path / "moved")
    model = ModelConfig(weights=str(moved), teacher=config.model.teacher, pipeline=config.model.pipeline)
    assert identify_files(TuneConfig(model=model, data=config.data), None) == before


def test_another_text_encoder_under_the_same_name_has_other_embeddings(config, tmp_path):
    folder = Path(config.model.pipeline)
    before = digest_text_encoder(folder, None)
    (folder / "vae" / "config.json").write_text("another one")
    assert digest_text_encoder(folder, None) == before
    (folder / "text_encoder" / "config.json").write_text("another one")
    assert digest_text_encoder(folder, None) != before


def test_the_miniature_has_no_files_to_identify():
    config = TuneConfig(model=ModelConfig(miniature=True))
    assert identify_files(config, None) == config


def test_second_prompts_need_first_ones():
    with pytest.raises(ConfigError, match="switched names second prompts, but prompts is empty; name both files"):
        DataConfig(switched="second.txt")
