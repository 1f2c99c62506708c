#!/usr/bin/env bash
# Makes bundles/NAME again: simulates the data, trains, measures and publishes.
#
#     scripts/reference.sh lensnet [FOLDER]
#     SEEDS=3 scripts/reference.sh lensnet    # trains three, publishes the best
#
# Stop it at any time and run it again: it goes on where it was. FOLDER (default: reference) takes
# 14 GB. The data take 3 minutes on two cores; how long the training takes stands in scripts/recipes.
# What is shipped was trained on one thread (OMP_NUM_THREADS=1): other numbers round differently.
# Two tracks: "simulator in the loop" trains on POOL, with the truth that the simulator knows;
# "labels only" on the 30,000 images of the benchmark and their labels. Both are measured once on
# its 7,500 test images.
set -euo pipefail

name=${1:?name a network: lensnet, mobilenetv3-small, resnet18 or efficientnet-b5}
folder=${2:-reference}
root=$(dirname "$0")/..
recipes=$root/scripts/recipes
benchmark=$folder/common-test-1 pool=$folder/pool

has() { test -f "$1/$2"; }
has "$benchmark" manifest.json ||
  sublens simulate common-test-1 --train 30000 --test 7500 --seed 1 --workers 2 --out "$benchmark"
has "$pool" manifest.json ||
  sublens simulate common-test-1 --train 240000 --test 6000 --seed 2 --workers 2 --out "$pool"

runs=()
train() { # track, data, seed, more settings
  local run=$folder/runs/$name-$1-$3
  sublens train "$2" --settings "$recipes/$name-$1.toml" --set train.seed="$3" "${@:4}" --out "$run" --resume
  has "$run" scores.json || sublens evaluate "$run" "$benchmark"
  runs+=("$run")
}
for seed in $(seq 0 $((${SEEDS:-1} - 1))); do train simulator "$pool" "$seed"; done
taught=()
if [ "$name" = mobilenetv3-small ]; then # by what lensnet made of the same labels
  teacher=$folder/runs/lensnet-labels-0
  sublens train "$benchmark" --settings "$recipes/lensnet-labels.toml" --set train.seed=0 --out "$teacher" --resume
  taught=(--set train.teacher="$teacher")
fi
test ! -f "$recipes/$name-labels.toml" || train labels "$benchmark" 0 "${taught[@]}"
sublens publish "$benchmark" "${runs[@]}" --out "$root/bundles/$name" --force
