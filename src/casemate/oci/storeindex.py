"""The image store's index and locks.

Below ``ROOT/images``::

    index.json              names, images, layers: what is not in it does not exist
    manifests/HEX.json      manifests and configurations as they came, by digest
    configs/HEX.json
    layers/SHORT/           unpacked layers in overlayfs's format; layers/empty is for images without any
    tmp/                    what is being made or removed; whatever a dead process left is swept
    reserve                 space for writing the index on a full disk
    locks/                  index, hold, pull; source-NN and layer-NN: "who does the work"

Locks are ``flock(2)`` and taken in this order: source, pull, layer, hold, index. ``pull`` is shared by those who add
layers and ``hold`` by those who are making a container of an image; who removes layers takes both alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from casemate import jsonfile
from casemate.errors import HostError, StateError
from casemate.oci.reference import is_digest

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
STRIPES = 64
_RESERVE = 256 << 10
EMPTY = "empty"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class LayerRecord:
    """An unpacked layer. ``boot`` is the boot that made it while it is not synced to disk, and empty afterwards."""

    directory: str
    size: int
    entries: int
    opaque: bool
    blobs: dict[str, int] = field(default_factory=dict)
    boot: str = ""


@dataclass(slots=True)
class ImageRecord:
    """An image. ``digests`` are ``REPOSITORY@DIGEST`` as registries know it; ``removed``: goes once nothing uses it."""

    manifest: str
    layers: list[str]
    pulled: int
    digests: list[str] = field(default_factory=list)
    removed: bool = False


@dataclass(slots=True)
class Index:
    """All that the store knows: names to image ids, images by id, layers by diff_id."""

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, ImageRecord] = field(default_factory=dict)
    layers: dict[str, LayerRecord] = field(default_factory=dict)

    def names_of(self, image: str) -> tuple[str, ...]:
        """The names of an image, in order."""
        return tuple(sorted(name for name, target in self.names.items() if target == image))


def boot_id() -> str:
    """The kernel's name for the time since the machine started."""
    return _BOOT.read_text().strip()


class Space:
    """The store's directories, index file and locks.

    Arguments:
        root: ``ROOT/images``; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = root / "layers"
        self.tmp = root / "tmp"

    def prepare(self) -> None:
        """Make the directories.

        Raises:
            HostError: not permitted, or no space.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.root.chmod(0o700)  # layers hold set-uid programs, which must not be in reach of the host's users
            for name in ("manifests", "configs", "layers", "layers/" + EMPTY, "tmp", "locks"):
                (self.root / name).mkdir(exist_ok=True, mode=0o755)
            self._put_by()
        except OSError as error:
            hint = "run as root, with space on the disk"
            raise HostError(f"cannot make {self.root} ({error.strerror})", hint) from None

    def _put_by(self) -> None:
        """Keep some space for writing the index when there is no other."""
        path = self.root / "reserve"
        if path.exists():
            return
        with suppress(OSError):  # next time, then
            temporary = path.with_name(f".reserve.{os.getpid()}.{os.urandom(4).hex()}")
            try:
                temporary.write_bytes(os.urandom(_RESERVE))  # no zeros, which some file systems do not store
                os.rename(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def load(self) -> Index:
        """Read the index; an empty one when there is none.

        Raises:
            HostError: not permitted.
            StateError: it is damaged.
        """
        path = self.root / "index.json"
        hint = f"move {self.root} away and pull the images again"
        try:
            value = jsonfile.read(path)
        except FileNotFoundError:
            return Index()
        except OSError as error:
            raise HostError(f"cannot read {path} ({error.strerror})", "run as root") from None
        except StateError as error:
            raise StateError(error.message, hint) from None
        if value.get("version") != VERSION:
            raise StateError(f"{path} is of version {value.get('version')!r}, not {VERSION}", hint)
        try:
            return _parse(value)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise StateError(f"{path} is damaged ({error})", hint) from None

    @contextmanager
    def change(self) -> Iterator[Index]:
        """Read the index for changing it; written when the block ends well. Alone, and only for a moment.

        Raises:
            HostError: it cannot be written.
        """
        with self.lock("index"):
            index = self.load()
            yield index
            value: dict[str, Any] = {"version": VERSION, **asdict(index)}
            try:
                self._save(value)
            except OSError as error:
                raise HostError(f"cannot write the image index ({error.strerror})", "free some space") from None

    def _save(self, value: dict[str, Any]) -> None:
        path, reserve = self.root / "index.json", self.root / "reserve"
        try:
            jsonfile.write(path, value)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not reserve.exists():
                raise
            # The disk is full, and removing an image is what would help: use what was put by for that.
            reserve.unlink()
            jsonfile.write(path, value)

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock, waiting for it as long as it takes."""
        with self.try_lock(name, shared=shared, wait=True):
            yield

    @contextmanager
    def try_lock(self, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
        """Hold a lock; gives whether it was had. Without ``wait``, it is not when someone else has it."""
        try:
            fd = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot lock {self.root} ({error.strerror})", "run as root") from None
        try:
            operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(fd, operation | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def usable(self, record: LayerRecord | None) -> bool:
        """Whether a layer is there and whole: synced, or made since the machine started."""
        return record is not None and record.boot in ("", boot_id()) and os.path.isdir(self.layers / record.directory)

    def blob_path(self, kind: str, digest: str) -> Path:
        """Where a manifest or configuration is kept. ``kind`` is ``manifests`` or ``configs``."""
        return self.root / kind / f"{digest.partition(':')[2]}.json"


def _parse(value: dict[str, Any]) -> Index:
    index = Index(
        names={str(name): str(target) for name, target in value["names"].items()},
        images={key: ImageRecord(**record) for key, record in value["images"].items()},
        layers={key: LayerRecord(**record) for key, record in value["layers"].items()},
    )
    for digest in (*index.images, *index.layers, *(image.manifest for image in index.images.values())):
        if not is_digest(digest):
            raise ValueError(f"bad digest {digest!r}")
    for layer in index.layers.values():
        if not layer.directory or "/" in layer.directory or layer.directory in (".", ".."):
            raise ValueError("bad directory of a layer")
    return index
