"""A MODEL computes as its user set it, in every node of a chain, and asks for the memory it needs."""

import pytest
from hosts import HOSTS, Host
from inside import call_inside

RELEASES = pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)


@RELEASES
def test_a_compute_dtype_rules_every_node_of_a_chain_and_no_other_clone(release: Host):
    call_inside(release, "compute", "check_compute_dtype")


@RELEASES
def test_what_a_node_switches_on_for_a_run_is_in_the_key_of_its_blocks(release: Host):
    call_inside(release, "compute", "check_patches_of_a_run_rule_the_key", "check_a_failed_start_is_cleaned_up")


@RELEASES
def test_the_weights_of_comfyui_s_layers_are_lent_to_our_kernels(release: Host):
    call_inside(
        release,
        "lending",
        "check_layers_lend_what_they_use",
        "check_a_block_with_lent_weights_is_the_block_without",
    )


@RELEASES
def test_a_preview_that_unloads_the_model_does_not_end_a_block(release: Host):
    call_inside(release, "compute", "check_a_preview_that_takes_the_room_of_the_model")


@RELEASES
def test_previews_are_shown_a_pass_later_so_that_no_step_waits_for_the_host(release: Host):
    checks = "check_no_step_waits_for_its_preview", "check_every_step_is_shown_once_and_in_order"
    call_inside(release, "previews", *checks, "check_a_joint_pass_shows_its_oldest_block")


@RELEASES
def test_a_host_without_flash_attention_is_asked_for_no_more_than_a_pass_needs(release: Host):
    """It unloads or streams weights to free what is announced. A recache needs 0.93 GB at 832 x 480, 2.1 GB at 720p."""
    small, large = call_inside(release, "compute", "check_announced_memory")[0]
    assert 1.0 < small < 1.8
    assert 2.2 < large < 3.9


@RELEASES
def test_what_a_model_carries_is_honoured_or_named_or_refused(release: Host):
    call_inside(
        release,
        "honoured",
        "check_what_is_ignored_is_named",
        "check_what_is_ignored_changes_nothing",
        "check_what_is_called_is_honoured",
        "check_networks_with_more_to_them_are_refused",
    )


@RELEASES
def test_our_loaders_files_are_loaded_again_where_a_node_asks_and_kept_as_they_are_computed_with(release: Host):
    call_inside(release, "loading", "check_models_are_loaded_again_without_dynamic_vram", "check_default_dtype")


@RELEASES
def test_the_released_lora_is_merged_by_our_loader_and_unknown_to_a_stock_node(release: Host):
    call_inside(release, "loading", "check_the_released_lora_in_a_stock_node")
