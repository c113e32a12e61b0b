#!/usr/bin/env bash
# MSLT: Skype calls translated by a model that another recipe trained.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_stream_paper.yaml # FILE, training config, one of conf/train_*.yaml
variant=                            # deployed form; empty: what the config says
test_sets="dev test dev_test"       # sets to decode and score
corpus=                             # DIR, the folder MSLT_Corpus
trained=../../covost2/st1           # DIR, the recipe that trained the config of this name
source=en                           # language spoken
target=zh-CN                        # language translated into; the config names it too
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" --source "$source" --target "$target" ${corpus:+--corpus "$corpus"}

stage 2 "Features" \
  espnet-ext features "$config" --nj "$nj"

stage 3 "Tokens" \
  python local/model.py "$config" --trained "$trained" --part tokens ${variant:+--variant "$variant"}

stage 4 "Train" \
  python local/model.py "$config" --trained "$trained" --part model ${variant:+--variant "$variant"} -- "${extra[@]}"

stage 5 "Average and deploy" \
  espnet-ext deploy "$config" ${variant:+--variant "$variant"}

stage 6 "Decode" \
  espnet-ext decode "$config" --sets "$test_sets" --nj "$nj" ${variant:+--variant "$variant"}

stage 7 "Score" \
  espnet-ext score "$config" --sets "$test_sets" ${variant:+--variant "$variant"}

stage 8 "Report" \
  espnet-ext report "$config" ${variant:+--variant "$variant"}
