#!/usr/bin/env bash
# Checks the types with mypy (strict, see pyproject.toml). The cache in .mypy_cache makes later runs fast.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
. scripts/env.sh
exec mypy "$@"
