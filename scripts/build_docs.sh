#!/usr/bin/env bash
# Build the documentation site; a warning or a broken internal link is an error.
# Usage: scripts/build_docs.sh [OUT]        OUT: folder of the pages (default build/docs)
# Needs the environment of scripts/setup.sh; Sphinx goes into an environment of its own (DOCS_VENV, default build/docs_venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-build/docs}
venv=${DOCS_VENV:-build/docs_venv}
python=$PWD/.venv/bin/python
if [ ! -x "$python" ]; then
  echo "build_docs: no .venv; run scripts/setup.sh first" >&2
  exit 2
fi
if [ ! -x "$venv/bin/python" ]; then "$python" -m venv "$venv"; fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements/docs.txt
# Autodoc imports the package, so its dependencies must be visible; Sphinx's own versions come first on the path.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/vtseg_ros_dependencies.pth"

"$venv/bin/python" scripts/make_figures.py --check
"$venv/bin/python" -m sphinx -W --keep-going -q -b html docs "$out"
"$venv/bin/python" scripts/check_links.py "$out"
