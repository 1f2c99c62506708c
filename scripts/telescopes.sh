#!/usr/bin/env bash
# Makes bundles/lensnet-hst and bundles/lensnet-euclid again, by lessons from bright and plain to faint, on fresh images.
#
#     scripts/telescopes.sh FOLDER
#
# Run it where FOLDER can be written; docs/real-lenses.md says why there are lessons. On a GPU every image is new.
# LESSON, BRIGHTER, HST and EUCLID set the minutes of each training.
set -euo pipefail

folder=${1:?name a folder for the runs} sublens=${SUBLENS:-sublens}
root=$(cd "$(dirname "$0")/.." && pwd)
hst=(--settings "$root/scripts/lensnet-hst.toml") euclid=(--settings "$root/scripts/lensnet-euclid.toml")
slower=(--set train.lr=0.01 --set train.adamw_lr=0.0015)
mkdir -p "$folder"
cd "$folder"

$sublens train "$root/scripts/hst-acs-bright.toml" "${hst[@]}" --set train.minutes="${LESSON:-14}" --out first
$sublens presets hst-acs | sed -e 's/"hst-acs"/"hst-acs-brighter"/' -e 's/{ uniform = \[22, 25.5\] }/{ uniform = [20.5, 24.5] }/' > brighter.toml
grep -q '20.5, 24.5' brighter.toml
$sublens train brighter.toml "${hst[@]}" "${slower[@]}" --set model.start=first --set train.minutes="${BRIGHTER:-12}" --out brighter
$sublens train hst-acs "${hst[@]}" "${slower[@]}" --set model.start=brighter --set train.minutes="${HST:-50}" --out hst
$sublens train euclid-vis "${euclid[@]}" "${slower[@]}" --set model.start=hst --set train.minutes="${EUCLID:-25}" --out euclid
for survey in hst-acs:hst euclid-vis:euclid; do
  run=${survey#*:}
  $sublens evaluate "$run" "${survey%:*}"
  $sublens publish "${survey%:*}" "$run" --out "lensnet-$run" --force
done
