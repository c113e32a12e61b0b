#!/usr/bin/env bash
# Run a training on the nodes of a Slurm job; it goes on where it was after preemption and time limits.
# usage: sbatch --nodes 2 --gpus-per-node 4 utils/slurm/train.sh \
#          espnet-ext train CONFIG --ngpu 4 --num_nodes 2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
set -euo pipefail
stopped=75 # exit code of a training that saved its state because a signal asked for it
[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0" && exit 2; }
code=0
# Both signals reach the training: before the time limit USR1, before preemption TERM.
trap : USR1 TERM
srun --kill-on-bad-exit=1 "$@" || code=$?
[ "$code" -ne "$stopped" ] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$code"
