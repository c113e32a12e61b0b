#!/usr/bin/env bash
# VoxCeleb1: identification by a speech representation model, or a small network for its layers.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_wav2vec2_base_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                               # variant of the model; empty: what the config says
test_sets="test"                       # sets to decode and score
corpus=                                # DIR that holds dev/wav, test/wav and iden_split.txt
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" ${corpus:+--corpus "$corpus"}
standard_stages
