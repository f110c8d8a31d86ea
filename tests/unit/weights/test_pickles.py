"""Pickles and zip archives from strangers: no code runs, no file takes more memory than its size allows."""

import argparse
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from tiny_weights import TINY, assert_harmless, assert_loads_as, make_tensors

from longlive.errors import WeightsError
from longlive.weights.load import load_model
from longlive.weights.weights_file import read_weights_file


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, save, zipped):
    fired = tmp_path / "fired"
    path = save("evil.pt", {"generator": Trap(fired)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pt is a pickle of more than tensors \(.*\), so it was refused"):
        load_model(path)
    assert not fired.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path, save):
    fired = tmp_path / "fired"
    path = save("evil.pt", pickle.dumps(Trap(fired), protocol=2))
    with pytest.raises(WeightsError):
        read_weights_file(path)
    assert not fired.exists()


def test_objects_beside_the_tensors_are_named(save):
    with pytest.raises(WeightsError, match=r"\(argparse\.Namespace\), so it was refused"):
        read_weights_file(save("train.pt", {"generator": make_tensors("x"), "args": argparse.Namespace()}))


def pack_again(path, *, compression=zipfile.ZIP_DEFLATED, twice=False):
    """Pack an archive again, as another tool does."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in [*records.items()] * (2 if twice else 1):
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_torch_file_packed_by_another_tool_is_refused(base, save, compression):
    with pytest.raises(WeightsError, match=r"x\.pt was compressed or encrypted after it was saved \(.*use the file"):
        load_model(pack_again(save("x.pt", base), compression=compression), **TINY)


def test_a_torch_file_packed_again_without_compression_loads(base, save):
    assert_loads_as(base, pack_again(save("x.pt", base), compression=zipfile.ZIP_STORED))


def test_an_encrypted_torch_file_is_refused(base, save):
    path = save("x.pt", base)
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="was compressed or encrypted"):
        read_weights_file(path)


def test_a_torch_file_with_a_record_twice_is_refused(base, save):
    with pytest.raises(WeightsError, match="holds records twice or within each other"):
        read_weights_file(pack_again(save("x.pt", base), compression=zipfile.ZIP_STORED, twice=True))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "expanded",
    [
        torch.zeros(1).expand(30_000, 30_000),
        torch.zeros(1000).as_strided((30_000, 900), (0, 1)),
        torch.zeros(60_000).as_strided((30_000, 30_000), (1, 1)),
    ],
)
def test_tensors_much_larger_than_their_file_are_refused(base, save, zipped, expanded):
    path = save("x.pt", base | {"head.head.weight": expanded}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"has [0-9,]+ bytes, but its tensors would take [0-9,]+; save them"):
        load_model(path, **TINY)


def test_tied_tensors_load(base, save):
    tied = base | {"blocks.1.modulation": base["blocks.0.modulation"]}
    assert_loads_as(tied, save("x.pt", tied))


def make_cycle():
    state = {"x": torch.zeros(2)}
    state["state_dict"] = state["model"] = state
    return state


class Shadowed:
    """A pickle of this is one of a dict and a tensor with attributes in the place of their methods."""

    def __reduce__(self):
        x = torch.zeros(2)
        x.dim = x.numel = 5
        return OrderedDict, (), {"items": 5, "get": 5, "keys": 5}, None, iter({"x": x}.items())


ODD_STATES = {
    "a dict in itself": make_cycle(),
    "attributes in the place of methods": Shadowed(),
    "names that are none": {5: torch.zeros(2), (1, 2): torch.zeros(2), None: 1, 10**5000: 2, "x": torch.zeros(2)},
    "sparse": {"x": torch.zeros(2, 2).to_sparse()},
    "meta": {"x": torch.zeros(2, 2, device="meta")},
    "negated": {"x": torch.zeros(2, dtype=torch.complex64).conj().imag},
    "escape codes": {"\x1b[2J" * 50: torch.zeros(2)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state", ODD_STATES.values(), ids=ODD_STATES.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_odd_pickles_are_described_or_refused(save, state, zipped):
    path = save("x.pt", state, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert_harmless(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_crash_python_is_refused(save, zipped):
    """A million tuples in each other as a name: its hash overflows the stack."""
    path = save("x.pt", {"x": torch.zeros(2)}, _use_new_zipfile_serialization=zipped)
    deep = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", deep)
    else:
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (119547037146038801333356, 1001, {})) + deep)
    with pytest.raises(WeightsError, match="holds a pickle of more than 40,000 tuples"):
        read_weights_file(path)


def test_a_torch_file_whose_pickle_was_changed_is_refused(base, save):
    path = save("x.pt", base)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blocks.0.", b"blocks.7.", 1))
    with pytest.raises(WeightsError, match=r"x\.pt is truncated or damaged \(Bad CRC-32.*; download it again"):
        read_weights_file(path)
