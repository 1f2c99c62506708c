#!/usr/bin/env bash
# Makes bundles/lensnet-hst again: a first lesson on plain substructure, then the survey, both on fresh images.
#
#     scripts/telescopes.sh FOLDER [MINUTES OF THE LESSON] [MINUTES OF THE SURVEY]
#
# Run it where FOLDER can be written; docs/real-lenses.md says why there is a lesson. On a GPU every image is new.
set -euo pipefail

folder=${1:?name a folder for the runs} lesson=${2:-14} rest=${3:-60} sublens=${SUBLENS:-sublens}
root=$(cd "$(dirname "$0")/.." && pwd)
settings=(--settings "$root/scripts/lensnet-hst.toml")
mkdir -p "$folder"
cd "$folder"

$sublens train "$root/scripts/hst-acs-bright.toml" "${settings[@]}" --set train.minutes="$lesson" --out first
$sublens train hst-acs "${settings[@]}" --set model.start=first --set train.minutes="$rest" --out survey
$sublens evaluate survey hst-acs
$sublens publish hst-acs survey --out lensnet-hst --force
