"""The one exception tree of casemate.

::

    CasemateError
    ├── UsageError            a bad option, name or value
    │   ├── BadBundle         a bundle breaks the OCI runtime specification or a bound
    │   └── Unsupported       what was asked for cannot be had behind a kernel of its own
    ├── ConfigError           the configuration file is wrong
    ├── HostError             the host lacks something (root, a program, a device, space)
    ├── ImageError            an image is bad, missing or in use
    │   ├── ImageNotFound
    │   ├── BadImage
    │   └── ImageInUse
    ├── GuestError            the guest kernel or guest image is missing or bad
    │   └── GuestMissing
    ├── TemplateError         a template is missing or damaged, or cannot be made
    ├── HypervisorError       the virtual machine could not be made or has ended
    ├── AgentError            the agent in the guest refused a request or broke the protocol
    ├── NetworkError          the sandbox's network could not be made
    ├── ContainerError        a container could not be made or used
    │   ├── NoSuchContainer
    │   ├── NameInUse
    │   ├── NotRunning
    │   ├── StillRunning
    │   ├── CommandNotFound   exit status 127
    │   └── CommandNotExecutable   exit status 126
    └── StateError            the state on disk is damaged

Every class has a stable ``code``, which programs may compare, and an ``exit_status`` for the command line. The
message is one line; ``hint`` is one more that says what to do.
"""

from __future__ import annotations


class CasemateError(Exception):
    """The root of the tree.

    Arguments:
        message: what is wrong, one line, without a full stop at its end.
        hint: what to do about it, or an empty string where the message says it all.
    """

    code = "error"
    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class UsageError(CasemateError):
    """A bad option, name or value on the command line or in a request."""

    code = "usage"
    exit_status = 125


class BadBundle(UsageError):
    """A bundle's ``config.json`` or a process object breaks the OCI runtime specification, or a bound."""

    code = "bad-bundle"


class Unsupported(UsageError):
    """What was asked for is well formed and cannot be had behind a kernel of its own."""

    code = "unsupported"


class ConfigError(CasemateError):
    """The configuration cannot be read or holds an unknown key or a bad value."""

    code = "config"
    exit_status = 125


class HostError(CasemateError):
    """The host lacks something: privileges, a program, a device, space."""

    code = "host"
    exit_status = 125


class ImageError(CasemateError):
    """An image cannot be used."""

    code = "image"
    exit_status = 125


class ImageNotFound(ImageError):
    """No image has that name or digest."""

    code = "image-not-found"


class BadImage(ImageError):
    """An image breaks the image specification, a digest or a bound."""

    code = "bad-image"


class ImageInUse(ImageError):
    """A container still uses the image."""

    code = "image-in-use"


class GuestError(CasemateError):
    """The guest kernel or guest image is bad."""

    code = "guest"
    exit_status = 125


class TemplateError(CasemateError):
    """A template is missing or damaged, or cannot be made."""

    code = "template"
    exit_status = 125


class GuestMissing(GuestError):
    """No guest bundle has been built."""

    code = "guest-missing"


class HypervisorError(CasemateError):
    """The virtual machine could not be made, or has ended."""

    code = "hypervisor"
    exit_status = 125


class AgentError(CasemateError):
    """The agent in the guest refused a request, was silent too long or broke the protocol."""

    code = "agent"
    exit_status = 125


class NetworkError(CasemateError):
    """The sandbox's network could not be made."""

    code = "network"
    exit_status = 125


class ContainerError(CasemateError):
    """A container could not be made or used."""

    code = "container"
    exit_status = 125


class NoSuchContainer(ContainerError):
    """No container has that name or id."""

    code = "no-such-container"
    exit_status = 1


class NameInUse(ContainerError):
    """Another container has the name."""

    code = "name-in-use"


class NotRunning(ContainerError):
    """The container has to run for this."""

    code = "not-running"
    exit_status = 1


class StillRunning(ContainerError):
    """The container must not run for this."""

    code = "still-running"
    exit_status = 1


class CommandNotFound(ContainerError):
    """The command is not in the container."""

    code = "command-not-found"
    exit_status = 127


class CommandNotExecutable(ContainerError):
    """The command is there and cannot be executed."""

    code = "command-not-executable"
    exit_status = 126


class StateError(CasemateError):
    """The state on disk is damaged."""

    code = "state"
    exit_status = 125


def by_code(code: str, message: str, hint: str = "") -> CasemateError:
    """The error of a given ``code``, for errors that arrive over a socket.

    Arguments:
        code: a class's ``code``; an unknown one gives a plain :class:`CasemateError`.
        message, hint: as in :class:`CasemateError`.
    """
    todo: list[type[CasemateError]] = [CasemateError]
    while todo:
        cls = todo.pop()
        if cls.code == code:
            return cls(message, hint)
        todo.extend(cls.__subclasses__())
    return CasemateError(message, hint)
