#!/usr/bin/env bash
# Hedgewars: what layers of Whisper know of acted lines, and a small network in their place.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_mimic_last_whisper_tiny_s.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                         # variant of the model; empty: what the config says
test_sets="test"                                 # sets to decode and score
package=                                         # FILE, the Debian package; empty: fetch it
downloads=downloads                              # DIR where the fetched package is kept
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --downloads "$downloads" --nj "$nj" ${package:+--package "$package"}
standard_stages
