#!/usr/bin/env bash
# Trains networks side by side on one GPU, on fresh images of common-test-1, and measures each on the benchmark's test images.
#
#     scripts/seeds.sh FOLDER MINUTES NAME:SEED ...
#     scripts/seeds.sh runs 3.5 mobilenetv3-small:0 mobilenetv3-small:1 mobilenetv3-small:2
#
# Settings are those of scripts/recipes for the simulator in the loop, but for the length, which the clock decides;
# MobileNetV3-small also learns from the feature maps of lensnet. The log of each is FOLDER/NAME-SEED.log.
set -uo pipefail

folder=${1:?name a folder} minutes=${2:?how many minutes} sublens=${SUBLENS:-sublens}
recipes=$(dirname "$0")/recipes
mkdir -p "$folder"

train() { # name, seed
  local run=$folder/$1-$2 more=()
  test "$1" != mobilenetv3-small || more=(--set train.teacher=lensnet)
  $sublens train common-test-1 --settings "$recipes/$1-simulator.toml" --set train.seed="$2" \
    --set train.minutes="$minutes" "${more[@]}" --out "$run" &&
    $sublens evaluate "$run" common-test-1
}
for pair in "${@:3}"; do train "${pair%:*}" "${pair#*:}" >"$folder/${pair/:/-}.log" 2>&1 & done
wait
tail -n 4 "$folder"/*.log
