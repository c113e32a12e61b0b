#!/usr/bin/env bash
# DAIC-WOZ: detection of depression, one decision a participant by vote.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_hrf_mlp_whisper_tiny_s.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                      # variant of the model; empty: what the config says
test_sets="test"                              # sets to decode and score
corpus=                                       # DIR that holds 300_P and the lists
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" ${corpus:+--corpus "$corpus"}
standard_stages
