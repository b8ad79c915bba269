# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Download published weights: the only module of this package that connects to the Internet."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath

from vtseg_ros.errors import ConfigError, DownloadError
from vtseg_ros.published.table import Published

QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_XET": "1"}
"""Environment variables with which huggingface_hub sends no usage data and downloads from its endpoint only."""
TIMEOUT_S = 30


def download(entry: Published, folder: Path) -> Path:
    """Download the file of published weights without an account or token.

    Args:
        entry: weights to download. `HF_ENDPOINT` selects another server than huggingface.co.
        folder: an existing folder for the file and temporary ones.

    Returns:
        the file's path in the folder.

    Raises:
        DownloadError: if the file is not on the server, the server cannot be reached, or the download is truncated.
        ConfigError: if huggingface_hub is missing.
    """
    if entry.url:
        return _from_url(entry, folder)
    os.environ.update(QUIET)  # read when huggingface_hub is imported
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as err:
        raise ConfigError(
            f"{entry.name}: huggingface_hub is missing. pip install 'vtseg_ros[hub]', or {_by_hand(entry)}"
        ) from err
    # It logs each of its six attempts; the error contains the reason of the last one.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for name in entry.files:
        try:
            return Path(
                hf_hub_download(
                    entry.repository,
                    name,
                    revision=entry.revision or None,
                    cache_dir=folder / "cache",
                    local_dir=folder,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                    token=False,
                    library_name="vtseg_ros",
                )
            )
        except LocalEntryNotFoundError as err:  # cannot be reached; a subclass of EntryNotFoundError
            raise _failed(entry, err.__cause__ or err) from err
        except EntryNotFoundError:
            continue
        except Exception as err:  # httpx's, OSError and huggingface_hub's own classes
            raise _failed(entry, err) from err
    raise DownloadError(
        f"{entry.name}: {entry.source} has no file {' or '.join(entry.files)}. Download the weights by hand and use "
        f"vtseg weights convert FILE --as {entry.name}"
    )


def _failed(entry: Published, err: BaseException) -> DownloadError:
    text = " ".join(str(err).split()) or type(err).__name__
    return DownloadError(
        f"{entry.name}: the download from {entry.source} failed: {text[:200]}. Try again, or {_by_hand(entry)}"
    )


def _by_hand(entry: Published) -> str:
    """Return how to continue on a machine without a connection."""
    url = entry.file_url
    name = PurePosixPath(urllib.request.url2pathname(url)).name
    return f"download {url} with a browser or on another machine, and use vtseg weights convert {name} --as {entry.name}"


def _from_url(entry: Published, folder: Path) -> Path:
    path = folder / PurePosixPath(urllib.request.url2pathname(entry.url)).name
    request = urllib.request.Request(entry.url, headers={"User-Agent": "vtseg_ros"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
            announced = response.headers.get("Content-Length")
    except (urllib.error.URLError, http.client.HTTPException, OSError) as err:
        raise _failed(entry, err) from err
    received = path.stat().st_size
    if announced is not None and received != int(announced):
        raise DownloadError(
            f"{entry.name}: the download from {entry.source} is truncated: expected {announced} bytes, got {received}. "
            "Try again"
        )
    return path
