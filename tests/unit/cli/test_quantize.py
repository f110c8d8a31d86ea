"""`longlive quantize`: the file it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from kitchen_stand_in import install_kitchen
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.cli import evaluate
from longlive.cli.main import main
from longlive.miniature.files import DIT
from longlive.model.eight_bit import EightBit
from longlive.weights.load import merge_weights
from longlive.weights.lora import prepare_lora
from longlive.weights.weights_file import read_weights_file

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.fixture
def adapter(tmp_path) -> Path:
    recorded = load_file(REFERENCE / "lora.safetensors")
    path = tmp_path / "adapter.safetensors"
    save_file({name.removeprefix("lora."): tensor for name, tensor in recorded.items() if ".lora_" in name}, path)
    return path


def read_header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_file_holds_the_rounded_weights_with_the_lora_and_the_metadata(weights, adapter, tmp_path, caplog):
    caplog.set_level("INFO")
    output = tmp_path / "eight.safetensors"
    lora = ["--lora", str(adapter), "--strength", "0.5"]
    assert main(["quantize", str(weights), str(output), "--format", "int8", *lora]) == 0
    expected, _ = merge_weights(read_weights_file(weights), lora=prepare_lora(adapter, 0.5), eight_bit=EightBit.INT8)
    written = load_file(output)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert read_header(output) == read_header(weights)
    assert f"{output}: 0.1 MB of weights, 0.2 before" in caplog.messages


def test_a_file_made_from_a_folder_states_the_sizes_that_the_folder_states(weights, tmp_path):
    folder = tmp_path / "wan"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_heads": 2, "text_len": 8, "_class_name": "WanModel"}))
    save_file(load_file(weights), folder / "diffusion_pytorch_model.safetensors")
    output = tmp_path / "eight.safetensors"
    assert main(["quantize", str(folder), str(output), "--format", "fp8-scaled"]) == 0
    assert json.loads(read_header(output)["geometry"]) == {"num_heads": 2, "text_len": 8}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "int8-rotated"], "has 32 inputs, but a rotation needs a multiple of 256; choose int8"),
        (["--format", "int8", "--strength", "0.5"], "--strength belongs to --lora"),
    ],
)
def test_what_cannot_be_done_is_refused_and_writes_nothing(weights, tmp_path, caplog, more, message):
    output = tmp_path / "eight.safetensors"
    assert main(["quantize", str(weights), str(output), *more]) == 1
    assert message in caplog.text
    assert not output.exists()


def test_the_weights_are_never_overwritten(weights, caplog):
    before = weights.read_bytes()
    link = weights.with_name("link.safetensors")
    link.symlink_to(weights)
    for output in (weights, link):
        assert main(["quantize", str(weights), str(output), "--format", "int8"]) == 1
    assert caplog.text.count("would overwrite the weights it is made from; choose another name") == 2
    assert weights.read_bytes() == before


def test_an_output_of_another_kind_is_refused(weights, capsys):
    with pytest.raises(SystemExit):
        main(["quantize", str(weights), "eight.pt", "--format", "int8"])
    assert "eight.pt must end in .safetensors" in capsys.readouterr().err


def test_a_disk_that_refuses_is_named(weights, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert main(["quantize", str(weights), str(tmp_path / "file" / "eight.safetensors"), "--format", "int8"]) == 1
    assert "cannot be written" in caplog.text
    assert "choose another folder" in caplog.text


def test_the_miniature_is_measured_with_other_weights(tmp_path, monkeypatch, caplog):
    install_kitchen(monkeypatch)
    measured = []
    monkeypatch.setattr(
        evaluate, "report_miniature", lambda miniature, seeds: measured.append((miniature, seeds)) or ""
    )
    output = tmp_path / "eight.safetensors"
    assert main(["quantize", str(DIT), str(output), "--format", "int8-rotated"]) == 0
    assert main(["evaluate", "--miniature", "--seeds", "2", "--weights", str(output)]) == 0
    [(miniature, seeds)] = measured
    assert (miniature.model.kernel, seeds) == ("cpu sdpa int8 rotated eager", 2)
    assert miniature.model.dtype is torch.float32

    for given in (["--miniature", "--lora", "x"], ["video.mp4"]):
        assert main(["evaluate", *given, "--weights", str(output)]) == 1
    assert "leave out --weights" in caplog.text
    assert "--seeds, --lora, --rolling, --weights and --blends belong to --miniature" in caplog.text
