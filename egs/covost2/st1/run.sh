#!/usr/bin/env bash
# CoVoST 2: Common Voice translated, at the size of ResidualTransformer.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_stream_paper.yaml # FILE, training config, one of conf/train_*.yaml
variant=                            # deployed form; empty: what the config says
test_sets="test"                    # sets to decode and score
corpus=                             # DIR, Common Voice 4 with the lists covost_v2.*.tsv
source=en                           # language spoken
target=zh-CN                        # language translated into; the config names it too
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" --source "$source" --target "$target" ${corpus:+--corpus "$corpus"}

stage 2 "Features" \
  espnet-ext features "$config" --nj "$nj"

stage 3 "Tokens" \
  espnet-ext tokens "$config"

stage 4 "Train" \
  espnet-ext train "$config" --ngpu "$ngpu" -- "${extra[@]}"

stage 5 "Average and deploy" \
  espnet-ext deploy "$config" ${variant:+--variant "$variant"}

stage 6 "Decode" \
  espnet-ext decode "$config" --sets "$test_sets" --nj "$nj" ${variant:+--variant "$variant"}

stage 7 "Score" \
  espnet-ext score "$config" --sets "$test_sets" ${variant:+--variant "$variant"}

stage 8 "Report" \
  espnet-ext report "$config" ${variant:+--variant "$variant"}
