#!/usr/bin/env bash
# Build the sdist and the wheel, check their metadata, install the wheel in a clean environment and use it.
# Usage: scripts/check_package.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
outside() { (cd "$work" && env -u PYTHONPATH -u AMENT_PREFIX_PATH -u LD_LIBRARY_PATH "$@"); }

# A copy of the tree: building leaves a build folder and an egg-info behind.
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf - | tar -xf - -C "$work/source"

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check --constraint requirements/constraints.txt build twine
outside "$work/build/bin/python" -m build --outdir "$work/dist" "$work/source" > "$work/build.log" 2>&1 ||
  { tail -n 30 "$work/build.log" >&2; exit 1; }
outside "$work/build/bin/twine" check --strict "$work"/dist/*

"$python" -m venv "$work/clean"
"$work/clean/bin/pip" install --quiet --disable-pip-version-check --constraint requirements/constraints.txt \
  'torch==2.13.0' "$work"/dist/*.whl
outside "$work/clean/bin/vtseg" --version
outside "$work/clean/bin/vtseg" info street_tiny
outside "$work/clean/bin/python" - <<'PYTHON'
import importlib.metadata, numpy, vtseg_ros
from vtseg_ros.bags.messages import typestore

assert vtseg_ros.__version__ == importlib.metadata.version("vtseg_ros")
assert "vtseg_ros/msg/SegmentationStatus" in typestore().types
PYTHON
echo "check_package: the wheel and the sdist build, the wheel installs and works"
