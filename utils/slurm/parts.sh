#!/usr/bin/env bash
# Run one part of a grid, or of a stage, in each task of a Slurm array; no task waits for another.
# usage: sbatch --array 1-20 utils/slurm/parts.sh espnet-ext grid conf/grids/voice.yaml
#        sbatch --array 1-20 utils/slurm/parts.sh espnet-ext decode CONFIG --sets "test unseen"
# Then once, without --part: espnet-ext grid ... --summary, or the same espnet-ext command.
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,5s/^# //p' "$0" && exit 2; }
part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT
words=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do # options of ESPnet follow a lone --
  words+=("$1")
  shift
done
exec "${words[@]}" --part "$part" "$@"
