"""Names that come over HTTP never lead out of the folder they belong to."""

import json
import os
import tempfile
from pathlib import Path

import model_files
import pytest
from graphs import make_node
from host_messages import HostError
from host_process import ComfyUI
from host_state import read_refusal
from short_graphs import SESSION, SHORT, end_graph

CONTENT = "what the server keeps to itself"
HOSTILE = (
    "{outside}/secret.txt",
    "../{outside.name}/secret.txt",
    "folder/../../secret.txt",
    "~/secret.txt",
    "/etc/hostname",
    "/proc/self/environ",
    "/dev/zero",
    "/dev/stdin",
    "away/secret.txt",
    "secret.txt",
    "loop",
    "pipe.txt",
    "folder",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    ".hidden",
    "CON",
    "NUL.txt",
    "a.",
    "C:\\secret.txt",
    "x" * 300,
    "x/" * 3000 + "x",
    "\ud800",
)


@pytest.fixture(scope="module")
def outside(newest: ComfyUI) -> Path:
    """A folder beside the host's, to which links lead from the host's input and output folders."""
    outside = Path(tempfile.mkdtemp(dir=newest.base))
    (outside / "secret.txt").write_text(f"{CONTENT}\n")
    for folder in (newest.base / "input", newest.output / "longlive"):
        (folder / "folder").mkdir(parents=True)
        (folder / "away").symlink_to(outside)
        (folder / "secret.txt").symlink_to(outside / "secret.txt")
        (folder / "loop").symlink_to(folder / "loop")
        os.mkfifo(folder / "pipe.txt")
        os.mkfifo(folder / "pipe.txt.safetensors")
        (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    return outside


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_pairs(file: str) -> dict:
    graph = {"mini": make_node("LongLiveMiniature")}
    graph["pairs"] = make_node("LongLivePromptPairs", clip=["mini", 1], pairs="", file=file, negative="")
    return end_graph(graph, "pairs")


def run_and_catch(host: ComfyUI, graph: dict) -> str:
    """Run a graph and return the text of its refusal, empty if it runs."""
    try:
        host.run(graph)
    except HostError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_prompt_pairs_reads_its_input_folder_only(newest, outside, name):
    told = read_refusal(newest, make_pairs(name.format(outside=outside)))
    assert "is not a name in" in told or "cannot be read" in told
    assert CONTENT not in told
    assert len(told) < 400 + len(str(newest.base))


def test_prompt_pairs_of_a_folder_within_input(host):
    path = host.base / "input" / "sets" / "pairs.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("a red ring moves left at night\n")
    assert "a red ring moves left at night" in host.run(make_pairs("sets/pairs.txt")).text("pairs")


def test_a_file_too_large_to_be_prompts_is_refused(newest):
    with (newest.base / "input" / "large.txt").open("wb") as file:
        file.truncate(17 << 20)
    assert "cannot be read (it is larger than 16,777,216 bytes)" in read_refusal(newest, make_pairs("large.txt"))


def test_text_too_long_to_be_pairs_is_refused_before_it_is_queued(newest):
    graph = make_pairs("")
    graph["pairs"]["inputs"]["pairs"] = "a -> b\n" * 30_000
    with pytest.raises(HostError, match=r"the text has 210,000 characters, at most 200,000 are read; use a file"):
        newest.run(graph)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_a_session_is_kept_in_its_folder_only(newest, outside, name):
    before = read_files(outside)
    name = name.format(outside=outside)
    load = make_node("LongLiveLoadSession", model=["model", 0], name=name)
    if name not in ("folder", "pipe.txt", "loop", "secret.txt", "~/secret.txt"):  # with .safetensors, names like others
        save = make_node("LongLiveSaveSession", session=["session", 0], name=name)
        assert "is not a name for a session" in read_refusal(newest, end_graph(SESSION | {"save": save}, "save"))
        assert "is not a name for a session" in read_refusal(newest, end_graph(SESSION | {"load": load}, "load"))
    assert read_files(outside) == before


def test_a_pipe_is_refused_as_a_session(newest, outside):
    load = make_node("LongLiveLoadSession", model=["model", 0], name="pipe.txt")
    assert "it is a pipe, not a file" in read_refusal(newest, end_graph(SESSION | {"load": load}, "load"))


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_a_video_is_written_into_the_output_folder_only(newest, outside, name):
    before = read_files(outside), {path for path in newest.base.iterdir()}
    prefix = name.format(outside=outside)
    graph = SHORT | {"vae": make_node("VAELoader", vae_name=model_files.VAE.name)}
    graph["out"] = make_node("LongLiveDecode", session=["chunk0", 0], vae=["vae", 0], filename_prefix=prefix)
    told = run_and_catch(newest, graph)
    assert not told or "longlive.VideoError: " in told
    assert (read_files(outside), {path for path in newest.base.iterdir()}) == before


def test_models_are_those_the_host_lists(newest):
    for name in ("../../secret", "/etc/hostname", "a\0b"):
        graph = {"model": make_node("LongLiveModelLoader", model_name=name, lora_name="none", lora_strength=1.0)}
        graph["model"]["inputs"]["weight_dtype"] = "default"
        with pytest.raises(HostError, match="value_not_in_list"):
            newest.run(end_graph(graph, "model"))
        assert json.dumps(CONTENT) not in newest.log
