"""8-bit weights in each ComfyUI: what it reads, and what LongLive Model Loader makes of a whole file."""

import os
import subprocess
import sys

import pytest
from hosts import HOSTS, NEWEST, REPOSITORY, Host
from inside import call_inside

RELEASES = pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)


@RELEASES
def test_our_files_are_rounded_like_comfyui_s_and_read_by_its_loader(release: Host):
    checks = ("check_forms", "check_our_rounding_is_comfy_kitchen_s", "check_stock_loader_reads_our_files")
    forms, _, errors = call_inside(release, "eight_bit", *checks)
    assert forms == (["int8", "int8 rotated", "fp8 scaled"] if release is NEWEST else ["fp8 scaled"])
    assert [*errors] == forms


@RELEASES
def test_our_own_tree_computes_what_comfyui_computes_with_one_file(release: Host):
    checks = ("check_our_tree_computes_what_comfyui_computes", "check_fp8_is_multiplied_as_such")
    call_inside(release, "eight_bit", *checks)


@RELEASES
def test_our_loader_rounds_at_load_and_refuses_what_its_host_cannot_compute(release: Host):
    call_inside(
        release,
        "eight_bit",
        "check_our_loader_rounds_as_the_command_does",
        "check_a_lora_node_works_on_our_8_bit_model",
        "check_8_bit_weights_compute_in_bf16_where_the_device_can",
        "check_forms_that_comfyui_lacks_are_refused",
    )


@pytest.mark.slow
def test_8_bits_stay_near_bf16_at_the_true_width():
    """Two layers of random weights, one block, with the newest host's comfy-kitchen."""
    program = [sys.executable, str(REPOSITORY / "benchmarks" / "eight_bit_error.py"), "1"]
    paths = os.pathsep.join([str(REPOSITORY), str(NEWEST.home / "site")])
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    errors = {name: [float(error) for error in numbers] for name, *numbers in rows}
    for form, largest in (("int8", 0.015), ("int8 rotated", 0.015), ("fp8 scaled", 0.025)):
        assert all(0.001 < error < largest for error in errors[form]), (form, errors)
