#!/usr/bin/env bash
# Makes the street's training bags and trains street_tiny as shipped. Usage: scripts/train_street.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?usage: scripts/train_street.sh FOLDER}
"$here/setup.sh" --test
# shellcheck disable=SC1091
. "$here/env.sh"
mkdir -p "$folder"
variations=(clone overcast fog sunset 15-deg-left 15-deg-right)
for seed in $(seq 1 12); do
  [ -d "$folder/train_$seed" ] || vtseg synth --out "$folder/train_$seed" --scene 1 2 3 --frames 60 --size 320x96 \
    --variation "${variations[$((seed % 6))]}" "${variations[$(((seed + 3) % 6))]}" --seed "$seed" --no-depth --no-flow
done
[ -d "$folder/val" ] || vtseg synth --out "$folder/val" --scene 4 --variation clone fog sunset --frames 40 \
  --size 320x96 --seed 100 --no-depth --no-flow
cp "$here/../config/train/street.yaml" "$folder/street.yaml"
resume=()
[ ! -f "$folder/run/state.pt" ] || resume=(--resume)
vtseg train "$folder/street.yaml" --out "$folder/run" "${resume[@]}"
python "$here/ship_weights.py" "$folder/run/best.safetensors" street_tiny --frames-of "$folder/train_1" \
  --baseline-of "$folder"/train_*
