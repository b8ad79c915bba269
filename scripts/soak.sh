#!/usr/bin/env bash
# Runs the segmenter at full load for an hour and says whether memory, descriptors and latency stayed flat and whether
# the counters add up. Usage: scripts/soak.sh [--minutes 60] [--rate 60] [--checkpoint NAME_OR_FILE]
# [--backend NAME] [--out DIR]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$here/setup.sh"
# shellcheck disable=SC1091
. "$here/env.sh"
export FASTRTPS_DEFAULT_PROFILES_FILE="$here/../config/fastdds/loopback.xml"
export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
export PYTHONUNBUFFERED=1
exec python "$here/soak.py" "$@"
