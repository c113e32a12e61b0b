#!/usr/bin/env bash
# Flight of the Amazon Queen: who speaks, by layers of Whisper or a small network in their place.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_layer1_whisper_tiny_s.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                     # variant of the model; empty: what the config says
test_sets="test"                             # sets to decode and score
package=                                     # FILE, the Debian package; empty: fetch it
downloads=downloads                          # DIR where the fetched package is kept
parse_options "$@"

stage 1 "Prepare data" \
  python ../spk1/local/data.py --out data --downloads "$downloads" --nj "$nj" ${package:+--package "$package"}
standard_stages
