#!/usr/bin/env bash
# Nine nested systems by one training, each of the nine trained alone, and the largest rounded
# after training: what RESULTS.md compares. All start from hrf_conformer_xs, which is trained first.
# Options go to every run.sh; what is done is not done again.
#
# Example:
#   local/family.sh
#   local/family.sh --dry_run true
set -euo pipefail
unset CDPATH
case ${1:-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

family=conf/nested/train_nested_conformer_xs.yaml
alone() { # DEPTH BITS: tag of the system trained alone
  if [ "$2" = 32 ]; then echo "alone_xs_${1}l"; else echo "alone_xs_${1}l_${2}b"; fi
}

./run.sh --config conf/train_hrf_conformer_xs.yaml "$@"
./run.sh --config "$family" --stop_stage 4 "$@"
for depth in 6 4 2; do
  for bits in 32 8 4; do
    ./run.sh --config "conf/nested/train_$(alone $depth $bits).yaml" "$@"
    ./run.sh --config "$family" --stage 5 \
      --variant "${depth}L-384-${bits}b" --baseline "$(alone $depth $bits)" "$@"
  done
done
for bits in 8 4 2; do
  ./run.sh --config "conf/nested/train_$(alone 6 32).yaml" --stage 5 --variant "merged+${bits}b" "$@"
done
