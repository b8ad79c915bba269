#!/usr/bin/env bash
# Sets up, checks the style and the types and runs all tests but the long ones (-m long), in three processes that each take
# whole files: a test often waits for nodes that it started, and two processes leave processors idle then. Arguments go to
# pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --test
# shellcheck disable=SC1091
. scripts/env.sh
ruff check .
ruff format --check .
# The pinned NumPy, whose types it reads, needs Python 3.11.
if python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then scripts/check_types.sh; fi
# Tests start hundreds of processes; without stored bytecode, each would compile the package and pytest all tests again.
unset PYTHONDONTWRITEBYTECODE
python -m compileall -q vtseg_ros test
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not long" "$@"
