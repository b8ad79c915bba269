# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""DDS set-up without ROS: the Fast DDS profiles that the package ships, and domains that nobody uses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from vtseg_ros.errors import ConfigError

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
        raise ConfigError(
            f"fastdds_profile: no such profile; expected {', '.join(PROFILES)} or an XML file, got {profile!r}"
        )
    return dict.fromkeys(VARIABLES, str(path))


def free_domain() -> int:
    """Return a domain id that no process on this machine uses now, for example for a demo or a test run.

    Raises:
        ConfigError: If all domains are in use.
    """
    # Not `domain_coordinator`: it keeps only its own users apart, so it returns domains in which other ROS processes of
    # this machine run; and it is not part of every installation of ROS.
    first = os.getpid()
    for domain in (1 + (first + offset) % MAX_DOMAIN for offset in range(MAX_DOMAIN)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                # Where a domain's first participant listens, by the DDS standard's formula.
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise ConfigError(
        f"DDS domain: every domain from 1 to {MAX_DOMAIN} is in use on this machine; expected a free one. "
        "Stop other ROS processes"
    )
