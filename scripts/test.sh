#!/usr/bin/env bash
# Sets up, checks the style and the types and runs all tests but the long ones (-m long), in two processes that each take
# whole files. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --test
# shellcheck disable=SC1091
. scripts/env.sh
ruff check .
ruff format --check .
# The pinned NumPy, whose types it reads, needs Python 3.11.
if python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then scripts/check_types.sh; fi
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long" "$@"
