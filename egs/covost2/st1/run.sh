#!/usr/bin/env bash
# CoVoST 2: Common Voice translated, at the size of ResidualTransformer.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_stream_paper.yaml # FILE, training config, one of conf/train_*.yaml
variant=                            # variant of the model; empty: what the config says
test_sets="test"                    # sets to decode and score
corpus=                             # DIR, Common Voice 4 with the lists covost_v2.*.tsv
source=en                           # language spoken
target=zh-CN                        # language translated into; the config names it too
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" --source "$source" --target "$target" ${corpus:+--corpus "$corpus"}
standard_stages
