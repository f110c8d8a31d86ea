"""Files that are no weights files, or damaged, are refused with the cure; headers and names cannot hold up a reader."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_weights import CAUSAL, TINY, assert_harmless, make_tensors

from longlive.errors import WeightsError
from longlive.weights.load import load_model
from longlive.weights.weights_file import normalise_names, read_weights_file


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pt does not exist; give a \.safetensors or \.pt file"):
        read_weights_file(tmp_path / "gone.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file; load it with a GGUF loader"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer .*; run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page instead of the weights; download the file itself"),
        (b"just some text, long enough", "holds neither weights nor a session; expected"),
        (b"\x00" * 100, "holds neither weights nor a session"),
        (b"PK\x03\x04" + bytes(50), "is truncated"),
        (b"\x80\x02" + bytes(50), "is damaged or not a torch file|is a pickle of more than tensors"),
    ],
)
def test_what_is_not_a_weights_file_is_named_by_its_first_bytes(save, content, message):
    with pytest.raises(WeightsError, match=message):
        read_weights_file(save("file.pt", content))


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "new.safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(base, save, name, kept):
    options = {"_use_new_zipfile_serialization": False} if name == "old.pt" else {}
    whole = save(name, base, **options).read_bytes()
    with pytest.raises(WeightsError, match=r"truncated|damaged|more than tensors"):
        read_weights_file(save(name, whole[: int(len(whole) * kept)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected tensors by name"),
        (torch.zeros(3), "holds a Tensor; expected tensors by name"),
        ({}, r"holds nothing; expected tensors"),
        (
            {"critic": make_tensors("x"), "step": torch.tensor(7)},
            r"holds critic, step; expected .* generator.*; use a checkpoint",
        ),
        ({"critic_lora": make_tensors("x"), "step": 7}, "holds critic_lora, step; expected"),
        ({"generator": {}}, "holds nothing; expected"),
        ({"model.x": torch.zeros(2), "x": torch.zeros(2)}, "has two tensors for x; save one model in one file"),
    ],
)
def test_a_torch_file_without_a_model_is_refused(save, content, message):
    with pytest.raises(WeightsError, match=message):
        read_weights_file(save("file.pt", content))


def test_an_average_that_is_not_there_is_refused(base, save):
    with pytest.raises(WeightsError, match="has no generator_ema, but generator, step; leave `ema` off"):
        read_weights_file(save("a.pt", {"generator": base, "step": 1}), ema=True)
    with pytest.raises(WeightsError, match="has no generator_ema"):
        read_weights_file(CAUSAL, ema=True)
    with pytest.raises(WeightsError, match="has no generator, but only generator_ema; turn `ema` on"):
        read_weights_file(save("b.pt", {"generator_ema": base}), ema=False)


def test_a_folder_that_describes_nothing_is_refused(tmp_path, save):
    save("models/longlive_base.pt", make_tensors("x"))
    with pytest.raises(WeightsError, match=r"without config\.json \(weights found in it: models/longlive_base\.pt\)"):
        read_weights_file(tmp_path)


def test_a_folder_without_weights_is_refused(save):
    folder = save("wan/config.json", "{}").parent
    with pytest.raises(WeightsError, match=r"lacks diffusion_pytorch_model\*\.safetensors; download"):
        read_weights_file(folder)
    save("wan/diffusion_pytorch_model.safetensors", make_tensors("x"))
    save("wan/config.json", "{oops")
    with pytest.raises(WeightsError, match=r"config\.json is not JSON"):
        read_weights_file(folder)
    save("wan/config.json", "[]")
    with pytest.raises(WeightsError, match=r"config\.json holds a list; expected a JSON object"):
        read_weights_file(folder)


@pytest.mark.parametrize(
    "weight_map",
    [
        *(5, [1], {"a": 5}, {"a": None}, {"a": ["x"]}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "b/c"}),
        *({"a": "..\\x"}, {"a": "C:x"}, {"a": ""}, {"a": "."}, {"a": "x\0"}, {"a": "\x1b[2J" * 10**5}),
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(base, save, weight_map):
    folder = save("wan/config.json", json.dumps(TINY)).parent
    save("x.safetensors", base)
    save("wan/diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"index\.json names .* as a file beside it; download") as caught:
        load_model(folder)
    assert_harmless(caught.value)


@pytest.mark.parametrize(
    "name", ["config.json", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"]
)
def test_a_pipe_in_a_folder_is_refused_at_once(base, save, name):
    folder = save("wan/config.json", json.dumps(TINY)).parent
    save("wan/diffusion_pytorch_model.safetensors", base)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(WeightsError, match=r"it is a pipe, not a file|without config\.json|lacks"):
        load_model(folder)


def test_a_pipe_a_device_and_an_invalid_name_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), Path("a\0b"), Path("~nobody-of-this-name/x.pt")):
        with pytest.raises(WeightsError, match=r"cannot be read|does not exist"):
            read_weights_file(path)


def test_an_error_of_a_giant_header_is_short(save):
    header = json.dumps({"x" * 10**7: {"dtype": "\x1b[2J" * 10, "shape": [1], "data_offsets": [0, 4]}}).encode()
    with pytest.raises(WeightsError, match=r"is truncated or damaged") as caught:
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header + bytes(4)))
    assert_harmless(caught.value)


def test_a_header_larger_than_any_model_needs_is_refused(save):
    header = b"{" + b" " * (33 << 20)
    with pytest.raises(WeightsError, match="has a header of 34,603,009 bytes, expected at most 33,554,432"):
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header + bytes(len(header))))


@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62, 0], [-1], [1.5], "x", [2**70]])
def test_a_header_of_absurd_shapes_is_refused_before_anything_is_allocated(save, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    with pytest.raises(WeightsError):
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header))


def test_names_that_take_minutes_to_read_are_refused(save):
    with pytest.raises(WeightsError, match="names of up to 6,000,001 characters; expected at most 100,000 and 500"):
        read_weights_file(save("x.pt", {"model." * 10**6 + "x": torch.zeros(2)}))


def test_many_names_twice_are_counted_in_a_moment(save):
    pairs = {f"{prefix}{n}": torch.zeros(1) for n in range(20_000) for prefix in ("", "model.")}
    with pytest.raises(WeightsError, match=r"has two tensors for 0, 1, 10, 100 and 19996 more"):
        normalise_names(pairs)


def test_files_of_one_model_that_hold_a_tensor_twice_are_refused(base, save):
    """Which of the two counted would depend on the names of the files."""
    save("wan/config.json", "{}")
    for number in (1, 2):
        save(f"wan/diffusion_pytorch_model-{number}.safetensors", dict(base))
    with pytest.raises(WeightsError, match=r"model-2\.safetensors holds .* once more; download the folder again"):
        load_model(save("wan/config.json", "{}").parent)
