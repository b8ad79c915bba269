# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check that no tracked file outside vtseg_ros/weights is larger than 1 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 1_000_000


def main() -> int:
    """Print the files that are too large; return 1 if there are any."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    large = [
        path.relative_to(ROOT)
        for path in paths
        if path.is_file() and path.stat().st_size > LIMIT_BYTES and path.parent.name != "weights"
    ]
    for path in large:
        print(f"{path}: larger than {LIMIT_BYTES} bytes; expected a smaller file or one in vtseg_ros/weights")
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main())
