"""The Fast DDS profiles that the package ships."""

from __future__ import annotations

from pathlib import Path

from vtseg_ros.errors import ConfigError

PROFILES = ("default", "loopback")
# The older name, which Humble and Jazzy know, and the newer one.
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def profile_environment(profile: str, share: str | Path) -> dict[str, str]:
    """Environment variables that make a process use a profile.

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
