"""Names of images: what people type, what the store keeps, what listings show.

The grammar is Docker's: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``. A first component is a host when it holds a dot or a
colon, is ``localhost`` or has a capital letter; anything else is below ``docker.io``, and a single component there
below ``docker.io/library``. A transport before the name says where the image comes from: ``docker://NAME``,
``oci:DIR[:REF]``, ``oci-archive:FILE[:REF]``, ``docker-archive:FILE[:REF]``, ``dir:DIR``. A bare name is a registry's,
but for exactly ``busybox``, which is the image built into casemate.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from casemate.errors import UsageError

DEFAULT_DOMAIN = "docker.io"
LIBRARY = "library/"
EMBEDDED = "busybox"
MAX_NAME = 255
MAX_TEXT = 4096
PATH_TRANSPORTS = ("oci", "oci-archive", "docker-archive", "dir")

_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")


def is_digest(text: object) -> bool:
    """Whether ``text`` is a digest of a supported algorithm (sha256, sha512) in its canonical form."""
    return isinstance(text, str) and _DIGEST.match(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """A whole image name: ``domain/path``, and a tag or a digest or both."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """The name without tag and digest, such as ``docker.io/library/debian``."""
        return f"{self.domain}/{self.path}"

    @property
    def name(self) -> str:
        """The normalised name, which the store keeps. A digest wins over a tag, as it says more."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    @property
    def display(self) -> str:
        """What a listing shows: without the default domain and ``library/``."""
        return shorten(self.name)

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, which is the only case where TLS is not insisted on."""
        host = self.domain
        if host.startswith("["):
            host = host[1:].split("]")[0]
        elif ":" in host:
            host = host.split(":")[0]
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def at(self, digest: str) -> Reference:
        """This repository's image of a given digest."""
        return replace(self, tag="", digest=digest)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image comes from.

    ``transport`` is ``docker``, ``embedded`` or one of :data:`PATH_TRANSPORTS`. ``reference`` is set for the first two;
    ``path`` and ``selector`` (which image of several, may be empty) for the others.
    """

    transport: str
    reference: Reference | None = None
    path: str = ""
    selector: str = ""

    def __str__(self) -> str:
        if self.reference is not None:
            return self.reference.display
        return f"{self.transport}:{self.path}" + (f":{self.selector}" if self.selector else "")


def shorten(name: str) -> str:
    """A normalised name in the form that listings show."""
    default = f"{DEFAULT_DOMAIN}/"
    if not name.startswith(default):
        return name
    short = name[len(default) :]
    return short[len(LIBRARY) :] if short.startswith(LIBRARY) else short


def parse(text: str) -> Reference:
    """Parse an image name and normalise it: domain, ``library/`` and the tag ``latest`` are filled in.

    Raises:
        UsageError: it is no image name.
    """
    if not text or len(text) > MAX_TEXT:
        raise UsageError("an image name is empty or too long", "give a name such as debian:12")
    if _HEX.match(text):
        raise UsageError(f"{text} is an image id, not a name", "name an image in a registry, such as debian:12")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise UsageError(f"bad digest in image name {text!r}", "write it as NAME@sha256: and 64 lower-case hex digits")
    first, slash, remainder = rest.partition("/")
    if slash and (set(first) & set(".:[") or first == "localhost" or first != first.lower()):
        domain, path = first, remainder
    else:
        domain, path = DEFAULT_DOMAIN, rest
    path, colon, tag = path.partition(":")
    if colon and _TAG.match(tag) is None:
        raise UsageError(f"bad tag in image name {text!r}", "a tag is 1 to 128 of [a-zA-Z0-9_.-], no dot or dash first")
    if _DOMAIN.match(domain) is None:
        raise UsageError(f"bad registry host in image name {text!r}", "write HOST[:PORT]/NAME[:TAG]")
    if _PATH.match(path) is None:
        what = "must be lower case" if path != path.lower() else "has a bad character or an empty part"
        raise UsageError(f"bad image name {text!r}: {path!r} {what}", "write [HOST[:PORT]/]NAME[:TAG]")
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = LIBRARY + path
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise UsageError(f"image name {text[:40]!r}... is longer than {MAX_NAME} characters", "shorten it")
    return Reference(domain, path, tag or ("" if digest else "latest"), digest)


def parse_source(text: str) -> Source:
    """Parse what ``casemate pull`` and ``casemate run`` take: an image name with or without a transport.

    Raises:
        UsageError: an unknown transport, a missing path, a bad name.
    """
    if "\0" in text or "\n" in text:
        raise UsageError("an image name holds a control character", "give a name such as debian:12")
    if text == EMBEDDED:
        return Source("embedded", parse(text))
    if text.startswith("docker://"):
        return Source("docker", parse(text[len("docker://") :]))
    scheme, colon, rest = text.partition(":")
    if colon and scheme in PATH_TRANSPORTS:
        path, _, selector = (rest, "", "") if scheme == "dir" else rest.partition(":")
        if not path:
            raise UsageError(f"{text!r} names no path", f"write {scheme}:PATH" + ("" if scheme == "dir" else "[:REF]"))
        return Source(scheme, None, path, selector)
    if "://" in text or (colon and scheme in ("containers-storage", "docker-daemon", "ostree", "sif", "tarball")):
        known = "docker://, " + ", ".join(f"{name}:" for name in PATH_TRANSPORTS)
        raise UsageError(f"unknown transport in {text!r}", f"use one of {known}")
    return Source("docker", parse(text))
