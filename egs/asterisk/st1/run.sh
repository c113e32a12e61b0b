#!/usr/bin/env bash
# Asterisk: Spanish, French, Italian and Russian voice prompts into English text.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_nested_whisper_base_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                     # variant of the model; empty: what the config says
test_sets="test unseen retrieval_like"       # sets to decode and score
targets=en                                   # languages to translate into; the config names the one that is learnt
packages=                                    # DIR of the Debian packages; empty: fetch them
downloads=downloads                          # DIR where the fetched packages are kept
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --downloads "$downloads" --nj "$nj" \
  --targets "$targets" ${packages:+--packages "$packages"}
standard_stages
