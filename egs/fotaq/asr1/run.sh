#!/usr/bin/env bash
# Flight of the Amazon Queen: English speech recognition with a model of few megabytes.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_nested_whisper_tiny_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                     # variant of the model; empty: those of the config
baseline=                                    # run to compare with; empty: what the config says
test_sets="test unseen"                      # sets to decode and score
package=                                     # FILE, the Debian package; empty: fetch it
downloads=downloads                          # DIR where the fetched package is kept
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --downloads "$downloads" --nj "$nj" ${package:+--package "$package"}
standard_stages
