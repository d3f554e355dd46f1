"""Tests of engines that do not hold behind the sentry, and why; docs/sentry.md says the same to people.
By function, or by module and function."""

from __future__ import annotations

BEHIND_THE_SENTRY: dict[str, str] = {
    "test_cli_live.test_update": "the processors of a set are the host's control group's affair, and not shown inside",
    "test_loop_device": "block devices cannot be given to it",
}

PODMAN_BEHIND_THE_SENTRY = ("test_cli_run", "test_cli_inside", "test_podman_pods")
"""What every run of the tests has of Podman with this wall. Runtime and keeper are the same as with Docker, which has
them all; ``make soak`` has the rest."""

SOAK_BEHIND_THE_SENTRY = frozenset(
    (
        "test_cri.test_ten_in_parallel", "test_shim_ctr.test_many_at_once", "test_shim_ctr.test_the_order_of_events",
        "test_shim_ctr.test_a_client_that_is_killed", "test_shim_ctr.test_restarted_by_containerd",
        "test_shim_ctr.test_every_signal_and_attach", "test_shim_ctr.test_much_in_and_out",
        "test_shim_ctr.test_a_pair_by_name", "test_shim_ctr.test_removed_and_started_again",
    )
)  # fmt: skip
"""Of containerd's and Kubernetes' tests, what only ``make soak`` has with this wall: shim and runtime are the same."""
