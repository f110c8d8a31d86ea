"""Finished blocks in memory and on disk: what is found again, what is pushed out, what is damaged."""

from pathlib import Path

import pytest
import torch
from disks import close_folder
from safetensors.torch import save_file
from stored import read_block, write_block
from stored_blocks import (
    BLOCK_BYTES,
    FILE_BYTES,
    SHAPE,
    age,
    fill,
    list_files,
    list_held,
    list_warnings,
    make_block,
    make_key,
)

from longlive.session.block_store import Store, hash_entry


def test_a_block_comes_back_bit_for_bit_from_memory_and_from_disk(tmp_path):
    latents = torch.randn(SHAPE)
    for dtype in (torch.float32, torch.bfloat16):
        store, name = Store(tmp_path), make_key(1 if dtype is torch.float32 else 2)
        write_block(store, name, latents.to(dtype))
        for place in (store, Store(tmp_path)):
            found = read_block(place, name, SHAPE, dtype)
            assert found is not None
            assert found.dtype is dtype
            assert torch.equal(found, latents.to(dtype))


def test_the_folder_may_be_given_as_text(tmp_path):
    fill(Store(str(tmp_path)), [1])
    assert list_held(Store(tmp_path), [1]) == [1]


def test_an_unknown_key_is_none(tmp_path):
    assert read_block(Store(), make_key(1), SHAPE) is None
    assert read_block(Store(tmp_path), make_key(1), SHAPE) is None


def test_memory_keeps_the_blocks_used_last():
    store = fill(Store(memory_bytes=3 * BLOCK_BYTES), range(3))
    assert read_block(store, make_key(0), SHAPE) is not None
    fill(store, [3, 4])
    assert list_held(store, range(5)) == [0, 3, 4]


def test_a_block_put_twice_is_counted_once():
    store = fill(Store(memory_bytes=3 * BLOCK_BYTES), [0, 1, 1, 1, 2])
    assert list_held(store, range(3)) == [0, 1, 2]


def test_without_memory_the_disk_answers(tmp_path):
    store = fill(Store(tmp_path, memory_bytes=0), range(3))
    assert list_held(store, range(3)) == [0, 1, 2]
    assert list_held(fill(Store(memory_bytes=0), range(3)), range(3)) == []


def test_the_disk_loses_the_blocks_unused_for_longest(tmp_path):
    fill(Store(tmp_path), range(8))
    for number in range(8):
        age(tmp_path, number, seconds=100 - number)
    sizes = {path.stat().st_size for path in list_files(tmp_path)}
    assert max(sizes) <= FILE_BYTES < 2 * min(sizes)

    assert list_held(Store(tmp_path), [0, 2]) == [0, 2]  # used again, and so the youngest
    fill(Store(tmp_path, disk_bytes=5 * max(sizes)), [8])
    assert list_held(Store(tmp_path), range(9)) == [0, 2, 7, 8]


def test_the_disk_stays_within_its_limit(tmp_path):
    limit = 10 * BLOCK_BYTES  # headers are a fifth of such small entries
    store = Store(tmp_path, memory_bytes=0, disk_bytes=limit)
    for number in range(40):
        write_block(store, make_key(number), make_block(number))
        assert sum(path.stat().st_size for path in list_files(tmp_path)) <= limit
        assert read_block(store, make_key(number), SHAPE) is not None
    assert len(list_files(tmp_path)) > 5


@pytest.mark.parametrize(
    "damage",
    ["empty", "truncated", "text", "other tensors", "other shape", "other dtype", "float8", "not a number", "a folder"],
)
def test_a_damaged_entry_is_removed_and_computed_again(tmp_path, caplog, damage):
    fill(Store(tmp_path), [1, 2])
    path, other = list_files(tmp_path)
    whole = path.read_bytes()
    match damage:
        case "other tensors":
            save_file({"pixels": make_block(1)}, path)
        case "other shape":
            save_file({"latents": torch.zeros(1, 2, 16, 2, 4)}, path)
        case "other dtype":
            store_file(path, make_block(1).double())
        case "float8":  # whose bytes torch does not hand out
            store_file(path, make_block(1), torch.float8_e4m3fn)
        case "not a number":
            store_file(path, make_block(1) / 0)
        case "a folder":
            path.unlink()
            path.mkdir()
        case _:
            path.write_bytes({"empty": b"", "truncated": whole[:-1], "text": b"not latents"}[damage])
    store = Store(tmp_path)
    assert read_block(store, make_key(1), SHAPE) is None
    assert [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert list_held(store, [2]) == [2]
    assert list_files(tmp_path) == [other]
    assert list_held(fill(store, [1]), [1]) == [1]
    assert list_held(Store(tmp_path), [1, 2]) == [1, 2]


def store_file(path: Path, latents: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Write an entry whose digest fits its content, as another version may do."""
    save_file({"latents": latents.to(dtype or latents.dtype), "digest": hash_entry({"latents": latents})}, path)


def test_an_entry_larger_than_the_limit_pushes_no_other_out(tmp_path, caplog):
    store = fill(Store(tmp_path, memory_bytes=3 * BLOCK_BYTES, disk_bytes=6 * FILE_BYTES), range(3))
    large = (1, 48, *SHAPE[2:])
    write_block(store, make_key(9), make_block(9, large))
    assert read_block(store, make_key(9), large) is None
    assert len(list_warnings(caplog)) == 1
    for place in (store, Store(tmp_path)):
        assert list_held(place, range(3)) == [0, 1, 2]


def test_an_entry_in_memory_of_another_shape_is_not_given():
    store = fill(Store(), [1])
    assert read_block(store, make_key(1), (1, 3, 16, 4, 4)) is None
    assert read_block(store, make_key(1), SHAPE, torch.bfloat16) is None
    assert list_held(store, [1]) == [1]


def test_an_entry_that_cannot_be_reached_counts_as_none(shared, caplog):
    """One in another user's folder, and one in a folder whose name is too long for the disk."""
    fill(Store(shared), [1])
    with close_folder(shared / make_key(1)[:2]):
        assert list_held(Store(shared), [1]) == []
    assert list_held(Store(shared / ("x" * 300)), [1]) == []
    assert list_warnings(caplog) == []
    assert list_held(Store(shared), [1]) == [1]


def test_a_flipped_bit_is_noticed_and_the_block_computed_again(tmp_path):
    """Every later block would continue from a wrong one."""
    fill(Store(tmp_path), [1])
    [path] = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert list_held(Store(tmp_path), [1]) == []
    assert not path.exists()


def test_an_entry_that_cannot_be_written_does_not_end_the_keeping_of_others(tmp_path, caplog):
    folder = tmp_path / make_key(1)[:2] / f"{make_key(1)}.safetensors"
    (folder / "somebody's").mkdir(parents=True)
    store = fill(Store(tmp_path, memory_bytes=0), [1, 2, 3])
    assert len(list_warnings(caplog)) == 1
    assert list_held(store, [2, 3]) == [2, 3]
    assert (folder / "somebody's").is_dir()
