#!/usr/bin/env bash
# LibriSpeech, 100 hours: English speech recognition, by Whisper base.en or as in the papers.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_nested_whisper_base_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                     # variant of the model; empty: what the config says
test_sets="test_clean test_other"            # sets to decode and score
corpus=                                      # DIR, the folder LibriSpeech
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" ${corpus:+--corpus "$corpus"}
standard_stages
