"""The image store: finding, pulling, listing and removing images. See :mod:`casemate.oci.storeindex` for its files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from casemate.config import Config
from casemate.errors import ImageError, ImageInUse, ImageNotFound, StateError, UsageError
from casemate.oci import imageconfig
from casemate.oci.imageconfig import ImageConfig
from casemate.oci.limits import DEFAULT, Limits
from casemate.oci.reference import parse_source, shorten
from casemate.oci.storeindex import EMPTY, Index, Space

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})\Z")
InUse = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store.

    ``id`` is the digest of its configuration; ``names`` are normalised; ``layers`` are unpacked directories in
    overlayfs's format, bottom first, each once, at least one; ``size`` is that of all files in bytes; ``created`` is
    what the image says; ``pulled`` is in seconds since the epoch; ``digests`` are ``REPOSITORY@DIGEST``.
    """

    id: str
    names: tuple[str, ...]
    config: ImageConfig
    layers: tuple[Path, ...]
    size: int
    created: str
    pulled: int = 0
    manifest: str = ""
    digests: tuple[str, ...] = ()

    @property
    def display_names(self) -> tuple[str, ...]:
        """The names as listings show them."""
        return tuple(shorten(name) for name in self.names)


@dataclass(slots=True)
class Removed:
    """What :meth:`ImageStore.remove` did. ``kept`` are images that go once the containers that use them are gone."""

    untagged: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    freed: int = 0


class ImageStore:
    """The images below ``config.root``.

    Arguments:
        config: says where.
        in_use: gives the containers that use an image id. Without it nothing counts as used, and images whose removal
            was put off are left alone.
        limits: bounds on what images may ask for.
    """

    def __init__(self, config: Config, in_use: InUse | None = None, limits: Limits = DEFAULT) -> None:
        self._config = config
        self._in_use = in_use
        self._limits = limits
        self._space = Space(config.root / "images")

    @property
    def layers_directory(self) -> Path:
        """Where all layers are. Names relative to it are at most 16 bytes: 128 fit the options of one mount."""
        return self._space.layers

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every image from being deleted, for the moment between :meth:`resolve` and a container's record.

        Not to be held while pulling.
        """
        self._space.prepare()
        with self._space.lock("hold", shared=True):
            yield

    def resolve(self, text: str) -> Image:
        """The image of a name, a digest, an id or the beginning of an id.

        Raises:
            ImageNotFound: there is none in the store.
            UsageError: not a name; or the beginning of more than one id.
        """
        index = self._space.load()
        identity = self._find(index, text)
        if identity is None:
            raise self._missing(text)
        return self._image(index, identity)

    def list(self) -> tuple[Image, ...]:
        """Every image, the one pulled last first."""
        index = self._space.load()
        present = [key for key, record in index.images.items() if not record.removed]
        images = [self._image(index, key) for key in present]
        return tuple(sorted(images, key=lambda image: (-image.pulled, image.names, image.id)))

    def pull(self, text: str, progress: Callable[[str], None] | None = None) -> Image:
        """Fetch an image, or look whether the one in the store is still the same, and give it its names.

        Arguments:
            text: as for :func:`casemate.oci.reference.parse_source`.
            progress: called with one line for each step that may take more than a second.

        Raises:
            UsageError: not a source.
            ImageNotFound: the source has no such image.
            BadImage: the image breaks the specification, a digest or a bound.
            HostError: a program is missing, no space, no privileges, no network.
        """
        from casemate.oci import puller  # heavier than what resolving needs

        identity = puller.pull(self._space, self._config, parse_source(text), self._limits, progress or _silent, self)
        index = self._space.load()
        if identity not in index.images:
            raise ImageNotFound(f"image {text} was removed while it was pulled", "pull it again")
        return self._image(index, identity)

    def remove(self, text: str, force: bool = False) -> Removed:
        """Take a name away, and the image with it when it was the last.

        Arguments:
            text: as for :meth:`resolve`; an id takes all names away.
            force: also when containers use it (it is then deleted once they are gone) or when an id has several names.

        Raises:
            ImageNotFound, UsageError: as :meth:`resolve`.
            ImageInUse: a container uses it.
        """
        result = Removed()
        if self._find(self._space.load(), text) is None:
            raise self._missing(text)
        self._space.prepare()
        with self._space.change() as index:
            identity = self._find(index, text)
            if identity is None:
                raise self._missing(text)
            names = index.names_of(identity)
            name = self._named(index, text)
            if name is not None and len(names) > 1:
                del index.names[name]
                result.untagged.append(name)
                return result
            if name is None and len(names) > 1 and not force:
                shown = ", ".join(shorten(item) for item in names)
                raise ImageError(f"image {text} has more than one name ({shown})", "remove the names, or use --force")
            users = list(self._in_use(identity)) if self._in_use else []
            if users and not force:
                shown = ", ".join(sorted(users)[:5])
                raise ImageInUse(f"image {text} is used by container {shown}", "remove it first, or use --force")
            for item in names:
                del index.names[item]
                result.untagged.append(item)
            index.images[identity].removed = True
            (result.kept if users else result.deleted).append(identity)
        result.freed = self.collect(wait=True, drop=result.deleted)
        return result

    def prune(self) -> Removed:
        """Delete every image that has no name and that no container uses, and what is left of broken-off work."""
        result = Removed()
        self._space.prepare()
        with self._space.change() as index:
            named = set(index.names.values())
            for key, record in index.images.items():
                if key not in named and not record.removed and not (self._in_use and self._in_use(key)):
                    record.removed = True
                    result.deleted.append(key)
        result.freed = self.collect(wait=True, drop=result.deleted)
        return result

    def collect(self, *, wait: bool, drop: Sequence[str] = ()) -> int:
        """Delete images whose removal was put off and that nothing uses now, and layers of no image.

        Does nothing while a pull runs; the pull does it at its end.

        Arguments:
            wait: for those that :meth:`hold`.
            drop: images that may go although this store was not told what is in use.

        Returns:
            Bytes of layers that were freed.
        """
        from casemate.oci import sweep

        self._space.prepare()
        return sweep.collect(self._space, self._in_use, wait, drop)

    def _named(self, index: Index, text: str) -> str | None:
        """The stored name that ``text`` means, if any."""
        try:
            source = parse_source(text)
        except UsageError:
            if _HEX.match(text):
                return None
            raise
        if source.reference is None:
            return None
        return source.reference.name if source.reference.name in index.names else None

    def _find(self, index: Index, text: str) -> str | None:
        """The id of the image that ``text`` means."""
        name = self._named(index, text)
        if name is not None:
            return index.names[name]
        present = [key for key, record in index.images.items() if not record.removed]
        if "@" in text:
            source = parse_source(text)
            if source.reference is not None:
                wanted = source.reference.at(source.reference.digest).name
                return next((key for key in present if wanted in index.images[key].digests), None)
        match = _HEX.match(text)
        if match is None:
            return None
        found = [key for key in present if key.partition(":")[2].startswith(match.group(1))]
        if len(found) > 1:
            raise UsageError(f"{text} is the beginning of {len(found)} image ids", "give more digits")
        return found[0] if found else None

    @staticmethod
    def _missing(text: str) -> ImageNotFound:
        return ImageNotFound(f"no image {text}", f"get it with 'casemate pull {text}'")

    def _image(self, index: Index, identity: str) -> Image:
        record = index.images[identity]
        hint = "remove it with 'casemate rmi --force' and pull it again"
        try:
            config = imageconfig.parse(self._space.blob_path("configs", identity).read_bytes())
        except FileNotFoundError:
            raise StateError(f"image {identity} has lost its configuration", hint) from None
        paths: list[Path] = []
        size = 0
        for diff_id in record.layers:
            layer = index.layers.get(diff_id)
            if layer is None:
                raise StateError(f"image {identity} has lost a layer", hint)
            path = self._space.layers / layer.directory
            size += layer.size if path not in paths else 0
            if layer.opaque:
                paths.clear()
            if path in paths:
                paths.remove(path)  # overlayfs takes a directory once; all that counts is where it was applied last
            if layer.entries:
                paths.append(path)
        if not all(os.path.isdir(path) for path in paths):
            raise StateError(f"image {identity} has lost a layer", hint)
        return Image(
            identity,
            index.names_of(identity),
            config,
            tuple(paths) or (self._space.layers / EMPTY,),
            size,
            config.created,
            record.pulled,
            record.manifest,
            tuple(record.digests),
        )


def _silent(line: str) -> None:
    del line
