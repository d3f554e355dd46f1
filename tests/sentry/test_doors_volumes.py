"""Volumes, as in a virtual machine, behind the sentry."""

# ruff: noqa: F401 - imported to be collected here, with the fixtures of this directory
from __future__ import annotations

from tests.vm.test_volumes import (
    base,
    box,
    data,
    test_a_destination_through_links_of_the_image_stays_inside,
    test_a_follower_in_the_guest_sees_what_the_host_appends,
    test_a_huge_sparse_file,
    test_a_privileged_container_cannot_write_read_only_volumes,
    test_a_way_up_by_open_directories_ends_at_the_volume,
    test_links_out_of_a_volume_lead_into_the_guest,
    test_locks_hold_between_processes_of_the_guest,
    test_many_small_files,
    test_mapped_files_are_shared,
    test_nested_volumes,
    test_odd_names_both_ways,
    test_owners_modes_links_and_attributes,
    test_read_only_volumes_and_single_files,
    test_roots_are_each_containers_own_and_the_image_stays,
    test_the_guest_sees_at_once_what_the_host_does,
    test_the_host_sees_at_once_what_the_guest_does,
)
