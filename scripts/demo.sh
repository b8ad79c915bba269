#!/usr/bin/env bash
# Real ROS 2 nodes segment video: segmenter, evaluator, recorder and player as separate processes on loopback DDS.
# Usage: scripts/demo.sh [--bag BAG --image-topic TOPIC [--label-topic TOPIC]] [--checkpoint NAME_OR_FILE] [--out DIR]
# Without a bag: a synthetic street that the shipped weights have never seen.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$here/setup.sh"
# shellcheck disable=SC1091
. "$here/env.sh"
export FASTRTPS_DEFAULT_PROFILES_FILE="$here/../config/fastdds/loopback.xml"
export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
export PYTHONUNBUFFERED=1
exec python "$here/demo.py" "$@"
