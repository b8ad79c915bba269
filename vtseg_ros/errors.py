# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions a user can cause. Each message says what was wrong, what was expected, what to do."""


class VTSegError(Exception):
    """Base of all errors caused by input, arguments or files; the command line exits with 2 on it."""


class CheckpointError(VTSegError):
    """A checkpoint that cannot be used: truncated, of another model, or with other keys or shapes."""


class ConfigError(VTSegError):
    """A value in a parameter, a configuration file or an argument that is not allowed."""


class BagError(VTSegError):
    """A bag that cannot be read or written, or lacks a topic."""


class ImageError(VTSegError):
    """An image message or file that cannot be decoded; the message says why."""


class DeviceError(VTSegError):
    """A device or precision that this machine does not have."""


class DownloadError(VTSegError):
    """Weights that cannot be fetched: not there, not reachable, or truncated."""


def first_line(err: BaseException) -> str:
    """Return the first line of an exception's text, or the name of its class if it has none."""
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
