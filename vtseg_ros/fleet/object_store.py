# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Files in object stores, by fsspec: list, fetch and upload, with errors of one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vtseg_ros.errors import BagError, ConfigError, VTSegError, first_line
from vtseg_ros.fleet.urls import Url

UPLOADING = "uploading.json"
"""In a result while it is uploaded; without the record of a complete result it marks an interrupted upload."""
_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
)
_UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError")
_CHANGE = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
"""Fields of a file's information; the first that exists distinguishes versions."""


@dataclass(frozen=True)
class StoredFile:
    """A file in an object store.

    Attributes:
        name: path relative to the listed URL; empty if the URL names the file itself.
        path: path in the store, without the protocol.
        size: size, bytes.
        version: ETag, hash or time of change; differs if the content differs. Empty if the store has none.
    """

    name: str
    path: str
    size: int
    version: str


@contextmanager
def one_line_errors(url: Url) -> Iterator[None]:
    """Convert errors of fsspec and its implementations to errors of one line, as a context manager.

    Args:
        url: URL that the errors name.

    Raises:
        BagError: if the URL is not found, access is denied, or the store cannot be accessed.
        ConfigError: if a package for the URL is missing.
    """
    try:
        yield
    except VTSegError:
        raise
    except ImportError as err:
        raise ConfigError(
            f"{url}: cannot be opened ({first_line(err)}). Install it: pip install 'vtseg_ros[remote]'"
        ) from err
    except FileNotFoundError as err:
        raise BagError(f"{url}: not found ({first_line(err)}). Correct the bucket or the key") from err
    except PermissionError as err:
        raise BagError(
            f"{url}: access denied ({first_line(err)}). Check the credentials' permissions"
        ) from err
    except Exception as err:  # botocore's errors and those of other implementations have no common base
        kind = type(err).__name__
        advice = "Try again"
        if kind in _CREDENTIALS:
            advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        elif kind in _UNREACHABLE or isinstance(err, OSError):
            advice = "Check the network, and the address in AWS_ENDPOINT_URL"
        raise BagError(
            f"{url}: cannot be accessed ({kind}: {first_line(err).rstrip('.')}). {advice}"
        ) from err


def _open(url: Url) -> tuple[Any, str]:
    """Return a file system that always asks the store, and the path without the protocol."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
    except ValueError as err:
        raise ConfigError(
            f"{url}: {first_line(err).rstrip('.')}; expected a URL such as s3://bucket/key"
        ) from err
    return system, str(path)


def list_files(url: Url) -> list[StoredFile]:
    """List the files below a URL, or the file that it names.

    Args:
        url: URL of a file or folder.

    Returns:
        Files sorted by name; empty if there are none.

    Raises:
        BagError: if the bucket is absent, a name contains `..`, or the store cannot be accessed.
        ConfigError: if the URL's kind is unknown, or a package for it is missing.
    """
    with one_line_errors(url):
        system, root = _open(url)
        system.invalidate_cache()
        listed: dict[str, dict[str, Any]] = system.find(root, detail=True)
    found = []
    for path, info in listed.items():
        inside = path.startswith(root.rstrip("/") + "/")
        if (path != root and not inside) or path.endswith("/"):
            continue
        name = path[len(root.rstrip("/")) + 1 :] if inside else ""
        if ".." in PurePosixPath(name).parts:
            raise BagError(f"{url}: the name of {path} leaves its folder; expected none with `..`. Rename it")
        version = next((str(info[field]) for field in _CHANGE if info.get(field)), "")
        found.append(StoredFile(name, path, int(info.get("size") or 0), version))
    return sorted(found, key=lambda file: file.name)


def digest_of_listing(files: Sequence[StoredFile]) -> str:
    """Return the SHA-256 of the names, sizes and versions of files; no content is read.

    Args:
        files: files from `list_files`.

    Returns:
        64 hexadecimal digits.
    """
    listed = [[file.name, file.size, file.version] for file in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def find_matches(pattern: Url) -> list[Url]:
    """Return the URLs that match a glob.

    Args:
        pattern: URL with `*`, `?` or `[...]`.

    Returns:
        URLs, sorted; empty if none matches.

    Raises:
        BagError: see `list_files`.
        ConfigError: see `list_files`.
    """
    with one_line_errors(pattern):
        system, path = _open(pattern)
        system.invalidate_cache()
        return [Url(system.unstrip_protocol(found).rstrip("/")) for found in sorted(system.glob(path))]


def read_bytes(url: Url) -> bytes:
    """Return the content of a file.

    Args:
        url: URL of the file.

    Returns:
        All bytes of the file.

    Raises:
        BagError: if the file is absent or the store cannot be accessed.
        ConfigError: see `list_files`.
    """
    with one_line_errors(url):
        system, path = _open(url)
        content: bytes = system.cat_file(path)
        return content


def fetch(url: Url, files: Sequence[StoredFile], place: Path) -> None:
    """Copy the files of `list_files` to a local folder, or to a local file if the URL names a file.

    Args:
        url: URL that was listed.
        files: its files.
        place: folder or file to write; parent folders are created.

    Raises:
        BagError: if a file is absent, shorter or longer than listed, or the store cannot be accessed.
        ConfigError: see `list_files`.
        OSError: if the local disk is full.
    """
    for file in files:
        target = place / file.name if file.name else place
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened here: an error of the local disk is not taken for one of the store.
        with target.open("wb") as local:
            for block in _blocks(url, file):
                local.write(block)
            size = local.tell()
        if size != file.size:
            raise BagError(
                f"{url}: {file.path} changed or broke off; expected {file.size} bytes, got {size}. Try again"
            )


def _blocks(url: Url, file: StoredFile) -> Iterator[bytes]:
    with one_line_errors(url):
        system, _ = _open(url)
        stored = system.open(file.path, "rb")
    with stored:
        while True:
            with one_line_errors(url):
                block: bytes = stored.read(8 << 20)
            if not block:
                return
            yield block


def upload(folder: Path, url: Url, last: str) -> None:
    """Upload the files of a folder. An interrupted upload can be recognised, see `is_unfinished`.

    Args:
        folder: local folder.
        url: URL of the result.
        last: name of the file that is uploaded last; it marks the result as complete.

    Raises:
        BagError: if the store cannot be accessed.
        ConfigError: see `list_files`.
    """
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != UPLOADING
    )
    with one_line_errors(url):
        system, root = _open(url)
        system.pipe_file(f"{root}/{UPLOADING}", json.dumps({"files": names}).encode())
        for name in [*(name for name in names if name != last), last]:
            system.put_file(str(folder / name), f"{root}/{name}")
        system.rm_file(f"{root}/{UPLOADING}")


def is_unfinished(files: Sequence[StoredFile], last: str) -> bool:
    """Return whether listed files are an upload that was interrupted.

    Args:
        files: files from `list_files`.
        last: name of the file that is uploaded last.

    Returns:
        True if the marker of an upload exists and the last file does not.
    """
    names = {file.name for file in files}
    return UPLOADING in names and last not in names


def remove(url: Url, files: Sequence[StoredFile]) -> None:
    """Remove the files of an interrupted upload, the marker last.

    Args:
        url: URL that was listed.
        files: its files.

    Raises:
        BagError: if a file cannot be removed.
        ConfigError: see `list_files`.
    """
    with one_line_errors(url):
        system, _ = _open(url)
        for file in sorted(files, key=lambda file: file.name == UPLOADING):
            system.rm_file(file.path)
