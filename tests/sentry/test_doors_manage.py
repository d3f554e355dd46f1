"""Managing containers, terminals and isolation, as with a virtual machine, behind the sentry."""

# ruff: noqa: F401 - imported to be collected here, with the fixtures of this directory
from __future__ import annotations

from tests.vm.test_cli_manage import (
    test_cp_both_ways,
    test_exec,
    test_exec_detached_and_in_what_does_not_run,
    test_logs,
    test_pause_and_unpause,
    test_ps_inspect_and_stats,
    test_several_at_once_each_error_told,
    test_stop_kill_wait_and_rm,
)
from tests.vm.test_cli_terminal import (
    test_a_shell_in_a_terminal,
    test_a_terminal_for_exec_and_its_size,
    test_the_terminal_is_put_back_when_the_container_is_removed,
)
from tests.vm.test_isolation import (
    test_addresses_are_random,
    test_another_user_has_no_capabilities,
    test_every_process_ends_with_its_own_status,
    test_the_kernels_settings_cannot_be_changed,
)
