#!/usr/bin/env bash
# Makes bundles/lensnet-hst and bundles/lensnet-euclid again, by lessons from bright and plain to faint, on fresh images.
#
#     scripts/telescopes.sh FOLDER
#
# Run it where FOLDER can be written; docs/real-lenses.md says why there are lessons. On a GPU every image is new.
# BRIGHT, NEAR, FAINT, HST and EUCLID set the minutes of each training.
set -euo pipefail

folder=${1:?name a folder for the runs} sublens=${SUBLENS:-sublens}
root=$(cd "$(dirname "$0")/.." && pwd)
hst=(--settings "$root/scripts/lensnet-hst.toml") euclid=(--settings "$root/scripts/lensnet-euclid.toml")
mkdir -p "$folder"
cd "$folder"

near='s/^\([xy]\) = { normal = \[0, 0.25\] }/\1 = { normal = [0, 0.12] }/' # sources behind the lens: rings, not doubles
bright='s/{ uniform = \[22, 25.5\] }/{ uniform = [20.5, 24.5] }/'
variant() { # a preset under another name, with some lines changed; fails where these are not there
  $sublens presets hst-acs | sed "s/\"hst-acs\"/\"$1\"/" > whole.toml
  sed -e "${2:-}" -e "${3:-}" whole.toml > "$1.toml"
  ! cmp -s whole.toml "$1.toml"
}
variant hst-near "$near" "$bright"
variant hst-faint "$near"

lesson() { # out, start, minutes, survey, settings
  $sublens train "$4" "${@:5}" --set model.start="$2" --set train.lr=0.01 --set train.adamw_lr=0.0015 \
    --set train.minutes="$3" --out "$1"
}
$sublens train "$root/scripts/hst-acs-bright.toml" "${hst[@]}" --set train.minutes="${BRIGHT:-14}" --out bright
lesson near bright "${NEAR:-12}" hst-near.toml "${hst[@]}"
lesson faint near "${FAINT:-50}" hst-faint.toml "${hst[@]}"
lesson hst faint "${HST:-22}" hst-acs "${hst[@]}"
lesson euclid hst "${EUCLID:-12}" euclid-vis "${euclid[@]}"
for survey in hst-acs:hst euclid-vis:euclid; do
  run=${survey#*:}
  $sublens evaluate "$run" "${survey%:*}"
  $sublens publish "${survey%:*}" "$run" --out "lensnet-$run" --force
done
