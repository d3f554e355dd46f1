"""Using a template: from what is on disk to what a machine is made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import TemplateError
from casemate.vm.guest.bundle import GuestBundle
from casemate.vm.hypervisor import base
from casemate.vm.template import WINDOW_MIB, Class, background, class_of, making, memory, store
from casemate.vm.template.background import Pending


@dataclass(slots=True)
class Ready:
    """What a machine is made of that comes from a template."""

    image: base.Image
    """Its descriptors are the machine's from the moment that it is created."""
    shared: memory.Shared
    """To be kept as long as the machine runs, so that others find it."""
    hello: dict[str, Any]
    key: str
    given: bool = False
    """Whether a machine has the image's descriptors."""

    def close(self) -> None:
        """Give up what no machine has."""
        self.shared.close()
        if not self.given:
            self.given = True
            for fd in self.image.descriptors():
                os.close(fd)


def get(
    config: Config, bundle: GuestBundle, kind: Class, jail: base.Confinement, hypervisor: base.Hypervisor,
    sandbox: str, progress: Callable[[str], None],
) -> Ready | Pending:  # fmt: skip
    """Open the template of a class; where there is none, make it first if the class is the configured one, else have it
    made in the background.

    Returns:
        the template, or where there is none yet, what is being done about it: booting is as fast as waiting for that.

    Raises:
        TemplateError: it is damaged, or cannot be made, or could not be made not long ago.
    """
    key = store.key(config, bundle, kind)
    try:
        found = store.load(store.home(config.root) / key)
        store.used(found)
    except FileNotFoundError:
        if kind != class_of(kind.accelerator, config.memory, config.vcpus):
            return background.begin(config, key, kind)
        if reason := background.failed(config.run, key):
            raise TemplateError(f"none could be made not long ago: {reason}", "see: casemate template list") from None
        try:
            made = making.make(config, bundle, kind, jail, hypervisor, progress, wait=False)
        except TemplateError as error:
            background.note(config.run, key, kind, str(error))
            raise
        if made is None:
            return Pending("one is being made")
        found = made
    return _open(config, found, sandbox)


def look(config: Config, bundle: GuestBundle, kind: Class, sandbox: str) -> Ready | None:
    """Open the template of a class if there is one by now.

    Raises:
        TemplateError: it is damaged.
    """
    try:
        found = store.load(store.home(config.root) / store.key(config, bundle, kind))
        store.used(found)
    except FileNotFoundError:
        return None
    return _open(config, found, sandbox)


def _open(config: Config, template: store.Template, sandbox: str) -> Ready:
    shared = memory.take(config, template.key, template.path / "memory", (TEMPLATE_MIB - WINDOW_MIB) << 20, sandbox)
    fds: list[int] = []
    try:
        fds.append(os.dup(shared.fd))
        fds.append(memory.read(template.path / "window", "casemate-window"))
        fds.append(os.open(template.path / "state", os.O_RDONLY | os.O_CLOEXEC))
        image = base.Image(fds[0], fds[1], WINDOW_MIB, fds[2])
        return Ready(image, shared, template.hello, template.key)
    except OSError as error:
        for fd in fds:
            os.close(fd)
        shared.close()
        raise TemplateError(f"the template {template.path} cannot be read: {error.strerror}") from None
