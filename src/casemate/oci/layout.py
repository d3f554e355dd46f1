"""Images in files: OCI image layouts, Docker's archives, and what skopeo's ``dir:`` writes.

Sources: OCI image specification 1.1 ``image-layout.md``; Docker image specification 1.2 (combined image JSON and
filesystem changeset format); containers-transports(5).
"""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

from casemate.errors import BadImage, ImageNotFound, UsageError
from casemate.oci import imageconfig, manifest
from casemate.oci.files import Files, read
from casemate.oci.imageconfig import load_json
from casemate.oci.limits import Limits
from casemate.oci.manifest import Descriptor, LayerSource, Loaded
from casemate.oci.reference import parse

_NESTED = 4
_REF = "org.opencontainers.image.ref.name"
_NAME = "io.containerd.image.name"


def load(transport: str, files: Files, path: str, selector: str, limits: Limits) -> Loaded:
    """Read an image as far as its layers.

    Arguments:
        transport: one of :data:`casemate.oci.reference.PATH_TRANSPORTS`.
        path: what it was called, which names an image that has no name of its own.
        selector: which image of several; a tag or a name, may be empty.

    Raises:
        BadImage: the layout or the image breaks its specification.
        ImageNotFound: no image of that name in it.
        UsageError: it holds several and ``selector`` is empty.
    """
    if transport == "docker-archive":
        return _docker(files, path, selector, limits)
    if transport == "dir":
        return _dir(files, path, limits)
    return _oci(files, path, selector, limits)


def local_name(path: str, tag: str = "latest") -> str:
    """A name for an image without one: ``localhost/`` and what its file is called."""
    base = re.sub(r"(?:\.(?:tar|tgz|gz|zst|oci|docker))+\Z", "", PurePath(path).name.lower())
    base = re.sub(r"[^a-z0-9]+", "-", base).strip("-")[:100] or "image"
    return parse(f"localhost/{base}:{tag}").name


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _read_blob(files: Files, found: Descriptor, limit: int, what: str) -> bytes:
    if found.size > limit:
        raise BadImage(f"{what} is larger than {limit} bytes")
    data = read(files, _blob(found.digest), limit)
    if len(data) != found.size:
        raise BadImage(f"{what} has {len(data)} bytes and should have {found.size}")
    return manifest.check_digest(data, found.digest, what)


def _oci(files: Files, path: str, selector: str, limits: Limits) -> Loaded:
    version = load_json(read(files, "oci-layout", 4096), "oci-layout").get("imageLayoutVersion")
    if version != "1.0.0":
        raise BadImage(f"the image layout is of version {str(version)[:40]!r}, not 1.0.0")
    top = load_json(read(files, "index.json", manifest.MAX_MANIFEST), "index.json", limit=manifest.MAX_MANIFEST)
    found, tag = _select(top, selector, path)
    for _ in range(_NESTED):
        data = _read_blob(files, found, manifest.MAX_MANIFEST, "a manifest")
        value = load_json(data, "a manifest", limit=manifest.MAX_MANIFEST)
        said = value.get("mediaType", found.media_type)
        if found.media_type and said != found.media_type:
            raise BadImage(f"a manifest says that it is {str(said)[:100]!r} and its index {found.media_type[:100]!r}")
        if not manifest.is_index(value):
            break
        found = manifest.choose(value, "the image index")
    else:
        raise BadImage(f"indexes are nested more than {_NESTED} deep")
    config, layers = manifest.read_manifest(data)
    raw = _read_blob(files, config, imageconfig.MAX_BYTES, "the image configuration")
    sources = tuple(_layer(files, _blob(layer.digest), layer, limits) for layer in layers)
    return Loaded(data, raw, sources, (tag,))


def _layer(files: Files, name: str, layer: Descriptor, limits: Limits) -> LayerSource:
    if layer.size > limits.blob_bytes:
        raise BadImage(f"a layer is larger than {limits.blob_bytes} bytes")
    if files.size(name) < 0:
        raise BadImage(f"the image lacks its layer {layer.digest}")
    return LayerSource(lambda: files.open(name), layer.media_type, layer.digest, layer.size)


def _select(top: dict[str, Any], selector: str, path: str) -> tuple[Descriptor, str]:
    """The entry of an index that ``selector`` means, and a name for it."""
    raw = top.get("manifests")
    if not isinstance(raw, list) or not raw or len(raw) > 1024 or not all(isinstance(item, dict) for item in raw):
        raise BadImage("index.json has no list of manifests, or too many")
    named = []
    for item in raw:
        notes = item.get("annotations") or {}
        if not isinstance(notes, dict):
            raise BadImage("index.json has bad annotations")
        named.append((item, [str(notes[key])[:512] for key in (_NAME, _REF) if notes.get(key)]))
    if selector:
        fits = [pair for pair in named if selector in pair[1] or pair[0].get("digest") == selector]
        if not fits:
            have = ", ".join(sorted({text for _, texts in named for text in texts})[:12]) or "no names"
            raise ImageNotFound(f"no image {selector!r} in {path}", f"it has: {have}")
    else:
        fits = named
    if len({tuple(texts) for _, texts in fits}) > 1:
        have = ", ".join(sorted({text for _, texts in fits for text in texts})[:12])
        raise UsageError(f"{path} holds several images", f"add one of these after a colon: {have}")
    item, texts = fits[0]
    if len(fits) == 1:
        found = manifest.descriptor(item, "index.json")
    else:  # one image for several platforms
        found = manifest.choose({"manifests": [pair[0] for pair in fits]}, "index.json")
    return found, _named(texts, path)


def _named(texts: list[str], path: str) -> str:
    for text in texts:
        try:
            return parse(text).name if "/" in text or ":" in text else local_name(path, text)
        except UsageError:
            continue  # annotations may say anything; a name from the file will do
    return local_name(path)


def _dir(files: Files, path: str, limits: Limits) -> Loaded:
    data = read(files, "manifest.json", manifest.MAX_MANIFEST)
    value = load_json(data, "manifest.json", limit=manifest.MAX_MANIFEST)
    if manifest.is_index(value):
        found = manifest.choose(value, "manifest.json")
        data = read(files, f"{found.digest.partition(':')[2]}.manifest.json", manifest.MAX_MANIFEST)
        manifest.check_digest(data, found.digest, "a manifest")
    config, layers = manifest.read_manifest(data)
    raw = read(files, config.digest.partition(":")[2], imageconfig.MAX_BYTES)
    manifest.check_digest(raw, config.digest, "the image configuration")
    sources = tuple(_layer(files, layer.digest.partition(":")[2], layer, limits) for layer in layers)
    return Loaded(data, raw, sources, (local_name(path),))


def _docker(files: Files, path: str, selector: str, limits: Limits) -> Loaded:
    data = read(files, "manifest.json", manifest.MAX_MANIFEST)
    # The document is a list, so it is put into an object to be read with the bounds of every other.
    images = load_json(b'{"images":' + data + b"}", "manifest.json", limit=manifest.MAX_MANIFEST + 16)["images"]
    if not isinstance(images, list) or not images or len(images) > 1024:
        raise BadImage("manifest.json of the archive is not a list of images")
    tags = [_repo_tags(image) for image in images]
    everything = ", ".join(sorted(name for names in tags for name in names)[:12]) or "no names"
    if selector:
        wanted = parse(selector).name
        chosen = [i for i, names in enumerate(tags) if wanted in names]
        if not chosen:
            raise ImageNotFound(f"no image {selector!r} in {path}", f"it has: {everything}")
    elif len(images) > 1:
        raise UsageError(f"{path} holds several images", f"add one of these after a colon: {everything}")
    else:
        chosen = [0]
    image, names = images[chosen[0]], tags[chosen[0]]
    config_name, layer_names = image.get("Config"), image.get("Layers")
    if not isinstance(config_name, str) or not isinstance(layer_names, list):
        raise BadImage("manifest.json of the archive names no configuration or no layers")
    if len(layer_names) > imageconfig.MAX_LAYERS or not all(isinstance(name, str) for name in layer_names):
        raise BadImage(f"manifest.json of the archive has bad layers, or more than {imageconfig.MAX_LAYERS}")
    raw = read(files, config_name, imageconfig.MAX_BYTES)
    config = imageconfig.parse(raw)
    if len(config.diff_ids) != len(layer_names):
        raise BadImage(f"the archive has {len(layer_names)} layers and the image configuration {len(config.diff_ids)}")
    sources = []
    for name in layer_names:
        if files.size(name) < 0:
            raise BadImage(f"the image archive lacks its layer {name[:120]!r}")
        if files.size(name) > limits.blob_bytes:
            raise BadImage(f"a layer is larger than {limits.blob_bytes} bytes")
        sources.append(_archived(files, name))
    return Loaded(_manifest_for(raw, config.diff_ids), raw, tuple(sources), tuple(names) or (local_name(path),))


def _archived(files: Files, name: str) -> LayerSource:
    return LayerSource(lambda: files.open(name))


def _repo_tags(image: object) -> list[str]:
    tags = image.get("RepoTags") or [] if isinstance(image, dict) else None
    if not isinstance(tags, list) or len(tags) > 256 or not all(isinstance(tag, str) for tag in tags):
        raise BadImage("manifest.json of the archive has bad RepoTags")
    try:
        return [parse(tag).name for tag in tags]
    except UsageError as error:
        raise BadImage(f"manifest.json of the archive: {error.message}") from None


def _manifest_for(config: bytes, diff_ids: tuple[str, ...]) -> bytes:
    """A manifest for an image that came without one. Its layers are named by diff_id; their sizes are not known."""
    value = {
        "schemaVersion": 2,
        "mediaType": manifest.MANIFEST_TYPES[0],
        "config": {
            "mediaType": manifest.CONFIG_TYPES[0],
            "digest": manifest.digest_of(config),
            "size": len(config),
        },
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": 0}
            for diff_id in diff_ids
        ],
    }
    return json.dumps(value, sort_keys=True).encode()
