"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from casemate.errors import CasemateError

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from casemate.config import Config
    from casemate.keeper.store import ContainerState, Store
    from casemate.oci.store import ImageStore


def containers(config: Config) -> Store:
    """The containers."""
    from casemate.keeper.store import Store

    return Store(config)


def images(config: Config) -> ImageStore:
    """The images, which know the containers that use them."""
    from casemate.oci.store import ImageStore

    return ImageStore(config, in_use=containers(config).in_use)


def each(references: Iterable[str], action: Callable[[str], object]) -> int:
    """Do ``action`` for every reference; one that fails is reported and does not stop the others.

    Returns:
        0, or 1 when any failed.
    """
    from casemate.cli import output

    status = 0
    for reference in references:
        try:
            action(reference)
        except CasemateError as error:
            output.error(error)
            status = 1
    return status


def state_words(state: ContainerState, now: float) -> str:
    """A state for people: ``Up 5 minutes``, ``Exited (137) 2 hours ago, out of memory``."""
    from casemate.cli import output

    if state.status == "exited":
        words = f"Exited ({state.exit_code if state.exit_code is not None else '?'})"
        if state.finished is not None:
            words += f" {output.ago(now - state.finished)} ago"
        return words + (", out of memory" if state.oom_killed else "")
    if state.status == "creating":
        return "Starting"
    words = f"Up {output.ago(now - (state.started or now))}"
    return words + (" (Paused)" if state.status == "paused" else "")
