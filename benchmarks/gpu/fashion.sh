#!/usr/bin/env bash
# The bundled default on a GPU, in one call of under ten minutes that can be called again to go on:
# a longer teacher, its pairs, its student. Usage: benchmarks/gpu/fashion.sh DATA OUT [TEACH_STEPS] [DISTILL_STEPS] [PAIRS]
# DATA: the official .gz files of Fashion-MNIST. To try the road at tiny size: 20 20 100 as the last three.
set -euo pipefail
data=${1:?DATA} out=${2:?OUT} teach=${3:-60000} distill=${4:-30000} pairs=${5:-50000}
run() { python -m dmdistill "$@"; }

if [ ! -f "$out/teacher/teacher/config.json" ]; then
  if [ -f "$out/teacher/config.toml" ]; then run teach --resume "$out/teacher"
  else run teach --data "$data" --out "$out/teacher" --steps "$teach"; fi
fi
if [ ! -f "$out/distill/student/config.json" ]; then
  if ls "$out"/distill/checkpoints/*.pt >/dev/null 2>&1; then run distill --resume "$out/distill"
  else
    run pairs --teacher "$out/teacher" --out "$out/pairs" --pair-count "$pairs" --pair-batch 2000
    rm -rf "$out/distill"
    run distill --teacher "$out/teacher" --pairs "$out/pairs" --out "$out/distill" --steps "$distill"
  fi
fi
run evaluate "$out/teacher" --batch 2000 --json "$out/teacher.json"
run evaluate "$out/distill" --batch 2000 --json "$out/student.json"
