#!/usr/bin/env bash
# MSLT: Skype calls translated by a model that another recipe trained.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_stream_paper.yaml # FILE, training config, one of conf/train_*.yaml
variant=                            # variant of the model; empty: what the config says
test_sets="dev test dev_test"       # sets to decode and score
corpus=                             # DIR, the folder MSLT_Corpus
trained=../../covost2/st1           # DIR, the recipe that trained the config of this name
source=en                           # language spoken
target=zh-CN                        # language translated into; the config names it too
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" --source "$source" --target "$target" \
  ${corpus:+--corpus "$corpus"}
standard_stages 2 2
stage 3 "Tokens" \
  python local/model.py "$config" --trained "$trained" --part tokens ${variant:+--variant "$variant"}
stage 4 "Train" \
  python local/model.py "$config" --trained "$trained" --part model \
  ${variant:+--variant "$variant"} -- "${extra[@]}"
standard_stages 5 8
