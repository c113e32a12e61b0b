#!/usr/bin/env bash
# Flight of the Amazon Queen: English speech recognition with a compressed encoder.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_hrf_conformer_xs.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                # deployed form; empty: what the config says
baseline=                               # run to compare with; empty: what the config says
test_sets="test unseen"                 # sets to decode and score
package=                                # FILE, the Debian package; empty: fetch it
downloads=downloads                     # DIR where the fetched package is kept
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --downloads "$downloads" --nj "$nj" ${package:+--package "$package"}

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
  espnet-ext score "$config" --sets "$test_sets" ${variant:+--variant "$variant"} \
  ${baseline:+--baseline "$baseline"}

stage 8 "Report" \
  espnet-ext report "$config" ${variant:+--variant "$variant"}
