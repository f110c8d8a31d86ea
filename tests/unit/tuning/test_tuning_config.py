"""The configuration of a tuning: what the shipped files contain, and what is refused with its cure."""

import os
from pathlib import Path

import pytest

from longlive.cli.main import main
from longlive.errors import ConfigError, TuningError
from longlive.tuning import config as module
from longlive.tuning.config import (
    DataConfig,
    LearnConfig,
    ModelConfig,
    RunConfig,
    StreamConfig,
    TuneConfig,
    read_config,
)

CONFIGS = Path(module.__file__).with_name("configs")


def write_config(folder: Path, text: str) -> Path:
    path = folder / "tune.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_configurations_are_the_papers():
    assert {path.stem for path in CONFIGS.glob("*.toml")} == {"miniature", "stage1", "stage2"}
    first, second = (read_config(CONFIGS / f"{name}.toml") for name in ("stage1", "stage2"))
    assert (first.stream.length, first.learn.rank, first.learn.rate, first.learn.critic_rate) == (21, 0, 2e-6, 4e-7)
    assert (first.learn.average, first.learn.average_from, first.run.steps) == (0.99, 200, 700)
    assert (second.stream.length, second.learn.rank, second.learn.rate) == (240, 256, 1e-5)
    for paper in (first, second):
        assert (paper.rollout.window, paper.rollout.sink, paper.learn.ratio, paper.learn.guidance) == (12, 3, 5, 3.0)
        assert (paper.stream.clip, paper.stream.overlap, paper.learn.largest_norm) == (21, 3, 10.0)
        assert (paper.learn.betas, paper.learn.weight_decay) == ((0.0, 0.999), 0.01)
    assert read_config(CONFIGS / "miniature.toml").model.miniature


def test_paths_are_relative_to_the_file(tmp_path):
    text = '[model]\nweights = "a.pt"\nteacher = "b"\npipeline = "c"\n[data]\nprompts = "p.txt"'
    config = read_config(write_config(tmp_path, text))
    assert config.model.weights == str(tmp_path / "a.pt")
    assert config.data.prompts == str(tmp_path / "p.txt")
    assert config.model.lora == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[modle]\nminiature = true", "'modle' is not a section; did you mean model?"),
        ("[model]\nminiature = true\n[learn]\nrnk = 4", r"'rnk' is not a setting of \[learn\]; did you mean rank?"),
        ("[rollout]\nkind = 'rolling'", r"tune\.toml: kind is 'rolling'; a tuning makes its own videos block-wise"),
        ("[learn]\nrank = 4", r"has no \[model\]; name the weights there, or set miniature = true"),
        ("model = 3", r"model is not a section; write \[model\] above its settings"),
        ("[model]\nminiature = ", "cannot be read as TOML"),
        ("[model]\nminiature = true\n[learn]\nprecision = 'fp8'", r"tune\.toml: precision is 'fp8'; use fp32 or bf16"),
        ("a = " + "[" * 10_000, "cannot be read as TOML .*recursion.*; correct that line"),
        ("a = " + "9" * 5000, "cannot be read as TOML"),
        ("[model]\nweights = 5", "weights is 5; it must be a path"),
        ('[model]\nweights = "a\\u0000b"', r"weights is 'a\\x00b'; it must be a path"),
        ('[model]\nweights = "loop/a"', "weights is loop/a, which cannot be resolved"),
        ("[model]\nminiature = 1", "miniature is 1; it must be true or false"),
        (f"[model]\n{'x' * 1000} = 1", r"'x{40}' is not a setting of \[model\]; use one of miniature"),
        ("[data]\nnegative = 5", "negative is 5; it must be text"),
        ("[data]\nwidth = 1979-05-27", r"width is datetime.date\(1979, 5, 27\); it must be a whole number"),
        ("[stream]\nboundary = 'x'", "boundary is 'x'; use recache or renew or keep or discard"),
        ("[stream]\nlength = 1000000000000000000", "length is 1000000000000000000; it must be from 1 to 1000000"),
        ("[learn]\nguidance = 'x'", "guidance is 'x'; it must be a number"),
        ("[learn]\nweight_decay = nan", "weight_decay is nan; it must be a finite number"),
        ("[learn]\nalpha = inf", "alpha is inf; it must be a finite number"),
        ("[learn]\ncheckpointing = 'x'", "checkpointing is 'x'; it must be true or false"),
        ("[learn]\nrank = 2.5", "rank is 2.5; it must be a whole number"),
        ("[learn]\nrank = true", "rank is True; it must be a whole number"),
        ("[learn]\nbetas = 0.5", "betas is 0.5; it must be a list"),
        ("[learn]\nbetas = [0.5]", "betas has 1 values; it must have 2"),
        ("[run]\nseed = 1.5", "seed is 1.5; it must be a whole number"),
        ("[run]\nseed = -1", "seed is -1; it must be from 0 to 18446744073709551615"),
        ("[run]\nsteps = nan", "steps is nan; it must be a whole number"),
        ("[rollout]\nwindow = [1]", r"window is \[1\]; it must be a whole number"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_a_sentence(text, sentence, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TuningError, match=sentence):
        read_config(write_config(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[model]\n# Bär".encode("latin-1"), r"cannot be read \(line 2 is not UTF-8\); give a TOML file"),
        (b"#" * 100_001, r"cannot be read \(it is larger than 100,000 bytes\)"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(content, sentence, tmp_path):
    (tmp_path / "tune.toml").write_bytes(content)
    with pytest.raises(TuningError, match=sentence):
        read_config(tmp_path / "tune.toml")


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_pipe_is_refused_as_a_configuration(tmp_path):
    os.mkfifo(tmp_path / "tune.toml")
    with pytest.raises(TuningError, match=r"cannot be read \(it is a pipe, not a file\)"):
        read_config(tmp_path / "tune.toml")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ModelConfig(), "model has no weights and no teacher and no pipeline; name the files"),
        (lambda: ModelConfig(miniature=True, weights="a"), "model has miniature = true and names files too"),
        (lambda: StreamConfig(overlap=21), "overlap is 21; it must be 1 to 20 frames of a clip"),
        (lambda: StreamConfig(length=20), "length is 20; it must be at least a clip, 21 frames"),
        (lambda: StreamConfig(boundary="keep"), "boundary is keep; tuning supports recache and renew"),
        (lambda: LearnConfig(ratio=0), "ratio is 0; it must be from 1 to 1000000"),
        (lambda: LearnConfig(rate=0.0), "rate is 0.0; use a number above 0"),
        (lambda: LearnConfig(average=1.0), "average is 1.0; use 0 for none, or a number below 1"),
        (lambda: LearnConfig(rank=-1), "rank is -1; it must be from 0 to 1000000"),
        (lambda: LearnConfig(betas=(0.9, 1.0)), r"betas are \[0.9, 1.0\]; use numbers from 0 to below 1"),
        (lambda: LearnConfig(weight_decay=-0.1), "weight_decay is -0.1; it must be from 0"),
        (lambda: DataConfig(height=0), "height is 0; it must be from 16 to 16384"),
        (lambda: RunConfig(seed=2**64), "seed is 18446744073709551616; it must be from 0 to 18446744073709551615"),
        (lambda: RunConfig(save_every=0), "save_every is 0; it must be from 1 to 1000000"),
        (lambda: DataConfig(width=840), "width is 840; it must be a multiple of 16"),
    ],
)
def test_a_number_out_of_range_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_settings_that_do_not_change_the_weights_may_change_on_a_resume():
    one = TuneConfig(model=ModelConfig(miniature=True))
    settings = one.as_fixed_settings()
    assert settings["learn.rank"] == 256
    assert settings["run.seed"] == 0
    assert not {"run.steps", "run.keep", "run.save_every"} & set(settings)


def test_the_command_names_what_is_wrong(tmp_path, caplog):
    assert main(["tune", str(tmp_path / "nowhere.toml")]) == 1
    assert "there is no configuration at" in caplog.text
    assert main(["pairs", "request", str(tmp_path / "none.txt"), "-o", str(tmp_path / "out.jsonl")]) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_pairs_are_made_with_a_language_model(tmp_path, caplog):
    prompts, requests = tmp_path / "prompts.txt", tmp_path / "requests.jsonl"
    prompts.write_text("a red fox runs through deep snow\n", encoding="utf-8")
    assert main(["pairs", "request", str(prompts), "-o", str(requests)]) == 0
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": 1, "answer": "a red fox jumps over a log in deep snow"}\n', encoding="utf-8")
    assert main(["pairs", "read", str(requests), str(answers), "-o", str(tmp_path / "pairs.jsonl")]) == 0
    assert "a red fox jumps" in (tmp_path / "pairs.jsonl").read_text()
