#!/usr/bin/env bash
# Speech Commands: words by a speech representation model, or a small network for its layers.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_wav2vec2_base_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                               # variant of the model; empty: what the config says
test_sets="test"                       # sets to decode and score
corpus=                                # DIR of the 35 words (speech_commands_v0.02)
official=                              # DIR, the official test set of 12 labels
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" ${corpus:+--corpus "$corpus"} \
  ${official:+--test_set "$official"}
standard_stages
