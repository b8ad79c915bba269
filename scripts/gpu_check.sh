#!/usr/bin/env bash
# Tests and measures the package on one NVIDIA GPU in at most ten minutes; writes gpu_report.json and prints a table.
# Needs Python with torch, opencv, safetensors, numpy, pytest, rich and PyYAML. Neither ROS nor a network.
# Usage: scripts/gpu_check.sh [--out FOLDER] [--minutes M] [--device cuda:N]
#        scripts/gpu_check.sh --device cpu     the same steps on the CPU with a small image, to check the script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
