#!/usr/bin/env bash
# Switchboard: English telephone speech, tested on Hub5'00, RT-02 and RT-03.
# shellcheck source=utils/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"

config=conf/train_nested_whisper_base_m.yaml # FILE, training config, one of conf/train_*.yaml
variant=                                     # variant of the model; empty: what the config says
test_sets="eval2000_swbd eval2000_callhm"    # sets to decode and score; also rt02 rt03_swbd rt03_fsh
corpus=                                      # DIR, LDC97S62: the audio of training
transcripts=                                 # DIR, swb_ms98_transcriptions; empty: in the corpus
eval2000=                                    # DIR, LDC2002S09, the folder hub5e_00
eval2000_text=                               # DIR, LDC2002T43
rt02=                                        # DIR, LDC2004S11
rt03=                                        # DIR, LDC2007S10
parse_options "$@"

stage 1 "Prepare data" \
  python local/data.py --out data --nj "$nj" ${corpus:+--corpus "$corpus"} \
  ${transcripts:+--transcripts "$transcripts"} ${eval2000:+--eval2000 "$eval2000"} \
  ${eval2000_text:+--eval2000_text "$eval2000_text"} ${rt02:+--rt02 "$rt02"} ${rt03:+--rt03 "$rt03"}
standard_stages

stage 9 "Score with NIST's toolkit" \
  python local/score.py "$config" --sets "$test_sets" ${variant:+--variant "$variant"}
