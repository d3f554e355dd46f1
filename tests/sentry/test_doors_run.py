"""What ``run`` does for a virtual machine, behind the sentry (all but what only a machine has)."""

# ruff: noqa: F401 - imported to be collected here, with the fixtures of this directory
from __future__ import annotations

from tests.vm.test_cli_run import (
    test_a_slow_reader_holds_the_process_and_loses_nothing,
    test_an_image_from_a_layout_with_entrypoint_and_user,
    test_an_interrupt_while_the_machine_boots_leaves_nothing,
    test_detached_containers_outlive_their_shell,
    test_exit_statuses,
    test_over_its_memory_the_container_is_killed_and_says_so,
    test_published_ports_and_names,
    test_signals_reach_the_process,
    test_streams_are_8_bit_clean_and_end,
    test_the_guest_has_what_was_asked,
    test_the_image_stays_as_it_is_and_each_root_is_its_own,
    test_the_kernel_is_not_the_hosts,
    test_what_is_wrong_is_told_in_a_line_and_leaves_nothing,
    test_without_i_standard_input_is_empty,
)
from tests.vm.test_images_run import (
    image,
    layout,
    test_a_hostile_image_does_not_run_and_leaves_nothing,
    test_the_container_sees_what_the_layers_mean_and_what_it_writes_is_its_own,
    test_the_image_s_configuration_is_what_runs,
)
