# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""DDS set-up without ROS: the Fast DDS profiles that the package ships, domains that nobody uses, what the dead left."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from vtseg_ros.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

YOUNG_S = 2.0
PROFILES = ("default", "loopback")
# Higher domains' ports may be taken by outgoing connections.
MAX_DOMAIN = 100
# The older name, which Humble and Jazzy know, and the newer one.
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def profile_environment(profile: str, share: str | Path) -> dict[str, str]:
    """Return the environment variables that make a process use a profile.

    Args:
        profile: `default` (all interfaces), `loopback` (this machine only), an XML file, or empty for none.
        share: the package's share folder.

    Raises:
        ConfigError: if there is no such file.
    """
    if not profile:
        return {}
    path = Path(share) / "config" / "fastdds" / f"{profile}.xml" if profile in PROFILES else Path(profile)
    if not path.is_file():
        raise ConfigError(f"fastdds_profile is {', '.join(PROFILES)} or an XML file. Got: {profile!r}")
    return dict.fromkeys(VARIABLES, str(path))


def free_domain() -> int:
    """A domain id that no process on this machine uses now, so that two demos or test runs do not meet."""
    first = os.getpid()
    for domain in (1 + (first + offset) % MAX_DOMAIN for offset in range(MAX_DOMAIN)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                # Where a domain's first participant listens, by the DDS standard's formula.
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise ConfigError(f"all DDS domains from 1 to {MAX_DOMAIN} are in use on this machine")


def remove_dead_segments(folder: Path = Path("/dev/shm")) -> list[str]:
    """Remove the shared-memory segments of processes that were killed; returns their names.

    Fast DDS leaves 34 MB behind (with our profiles) for each killed process, and 64 MB is all that many containers
    have. It holds a lock on a segment's `_el` file while its process lives; what can be locked is nobody's.
    """
    removed = []
    if fcntl is None:
        return removed
    for lock in folder.glob("fast*_*_el"):
        segment = lock.with_name(lock.name.removesuffix("_el"))
        if not re.fullmatch(r"fast(rtps|dds)_[0-9a-f]{16}", segment.name):
            continue
        with contextlib.suppress(OSError), lock.open("rb") as file:
            # One that is just being made is not locked yet.
            if time.time() - os.fstat(file.fileno()).st_mtime < YOUNG_S:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment.unlink(missing_ok=True)
            lock.unlink()
            removed.append(segment.name)
    return removed
