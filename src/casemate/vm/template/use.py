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
from casemate.vm.template import WINDOW_MIB, Class, class_of, making, memory, store


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
) -> Ready | None:  # fmt: skip
    """Open the template of a class; make it first where there is none and the class is the configured one.

    Returns:
        None where there is none and the class is not the configured one, or another process is just making it: booting
        is as fast as waiting for that.

    Raises:
        TemplateError: it is damaged, or cannot be made.
    """
    key = store.key(config, bundle, kind)
    try:
        found = store.load(store.home(config.root) / key)
        store.used(found)
    except FileNotFoundError:
        if kind != class_of(kind.accelerator, config.memory, config.vcpus):
            return None
        made = making.make(config, bundle, kind, jail, hypervisor, progress, wait=False)
        if made is None:
            return None
        found = made
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
