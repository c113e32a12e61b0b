#!/usr/bin/env bash
# Options, stages and logs of every recipe. A run.sh sources this file, assigns its options
# (the comment after each is its help; FILE or DIR at its start marks a path), calls
# parse_options "$@", then stage 1 "title" command... and standard_stages.
# shellcheck disable=SC2034,SC2154 # options are assigned and used on both sides
set -euo pipefail
# Variables that change what a shell, a tool or Python does.
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT GLOBIGNORE BASH_ENV ENV "${!PYTHON@}"
set +fC +o posix
shopt -u failglob nullglob dotglob nocaseglob nocasematch
export PYTHONPATH=${ESPNET_EXT_PYTHONPATH:-} PYTHONNOUSERSITE=1 PYTHONUTF8=1 PYTHONIOENCODING=utf-8

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
recipe_script=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd -P)/$(basename "${BASH_SOURCE[1]}")
caller_dir=$PWD
cd "$(dirname "$recipe_script")"

stage=1       # first stage to run
stop_stage=99 # last stage to run
ngpu=0        # GPUs of a node to train on; 0: the CPU
processes=1   # processes of a node to train in without GPUs
num_nodes=1   # nodes to train on, each with this command
threads=      # CPU threads of training; empty: OMP_NUM_THREADS, else up to four
nj=$(nproc)   # processes for work that splits
device=cpu    # of decoding: cpu, or cuda for a GPU
launcher=     # slurm: submit the stages as a chain of jobs; empty: run them here
sbatch=       # options of sbatch for every job, as in --sbatch="--partition gpu --time 24:00:00"
dry_run=false # only print what would run

# One thread a process is fastest on small shared machines, but for the training (stage 4), which
# chooses itself unless the user did. Big blocks of memory are kept instead of given back, which
# saves half the time of allocation-heavy training on a CPU.
user_threads=${OMP_NUM_THREADS:-}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-1073741824}
export PYTHONUNBUFFERED=1
export PATH="${ESPNET_EXT_VENV:-$root/tools/venv}/bin:$PATH"

variant='' baseline='' # options of recipes that may lack them
extra=()               # options of ESPnet, after --
given=()               # the user's options that a resumed run needs as well
exp=exp                # folder of the experiment, from the name of the config
node=0                 # number of this node, of --num_nodes
ran=0                  # stages done
submitted=             # the last job of --launcher slurm
left_out=()            # numbers of the stages after --stop_stage

fail() { # fail CODE MESSAGE...
  local code=$1
  shift
  echo "${recipe_script#"$root"/}: error: $*" >&2
  exit "$code"
}

_option_table() { # lines "name<TAB>help": what the recipe assigns, then what this file does
  local pattern='s/^\([a-z][a-z0-9_]*\)=[^#]*\(# *\(.*\)\)\{0,1\}$/\1\t\3/p'
  sed -n "/^parse_options /q; $pattern" "$recipe_script"
  sed -n "/^stage=/,/^dry_run=/$pattern" "$root/utils/recipe.sh"
}

_nearest() { # _nearest WORD LINES CUTOFF: the line most like WORD, if its likeness is enough
  local program='import difflib, sys
word, lines, cutoff = sys.argv[1:]
print(*difflib.get_close_matches(word, lines.split("\n"), 1, float(cutoff)))'
  python3 -I -S -c "$program" "$@" 2>/dev/null || true # no Python here yet: no proposal
}

_refuse_option() { # _refuse_option NUMBER WORDS...: the word of that number, from 0, is unknown
  local words=("${@:2}") at=$1 near ours=() theirs=()
  local name=${words[at]#--}
  name=${name%%=*}
  near=$(_nearest "${name//-/_}" "$(_option_table | cut -f1 && echo help)" 0.7)
  [ -z "$near" ] || fail 2 "unknown option '--$name'; did you mean '--$near'? --help lists all"
  ours=("${words[@]:0:at}")
  theirs=("${words[at]}")
  words=("${words[@]:at+1}")
  while [ ${#words[@]} -gt 0 ] && [[ ${words[0]} != --* ]]; do # its values
    theirs+=("${words[0]}")
    words=("${words[@]:1}")
  done
  while [ ${#words[@]} -gt 0 ] && [ "${words[0]}" != -- ]; do
    ours+=("${words[0]}")
    words=("${words[@]:1}")
  done
  fail 2 "unknown option '--$name'; --help lists all; options of ESPnet go after a lone --:" \
    "$(_called "${ours[@]}" -- "${theirs[@]}" "${words[@]:1}")"
}

_help() {
  local me=${recipe_script#"$root"/} name text
  sed -n '2s/^# //p' "$recipe_script"
  printf '\nusage: %s [options] [-- options of ESPnet]\n\n' "$me"
  while IFS=$'\t' read -r name text; do
    printf '  --%-12s %s (default: %s)\n' "$name" "$text" "${!name:-none}"
  done < <(_option_table)
  printf '  --%-12s %s\n\nexample: %s --stage 4 -- --max_epoch 30\n' help "print this" "$me"
}

_set_option() { # _set_option NAME VALUE
  case $1 in
    launcher)
      [ "$2" = slurm ] || [ -z "$2" ] || fail 2 "--launcher '$2': known is slurm"
      ;;
    stage | stop_stage | ngpu | processes | num_nodes | nj | threads)
      [[ $2 =~ ^[0-9]+$ ]] || fail 2 "--$1 needs a whole number, not '$2'"
      ;;
  esac
  local value=$2
  # A path starts from the user's folder, but the recipe runs in its own, whose configs are found
  # from everywhere.
  if [[ -n $value && $value != /* && $paths == *" $1 "* ]]; then
    [ "$1" = config ] && [ -f "$value" ] || value=$caller_dir/$value
  fi
  printf -v "$1" %s "$value"
  [[ $1 =~ ^(stage|stop_stage|dry_run|launcher|sbatch)$ ]] || given+=("--$1" "$value")
}

parse_options() {
  local known paths name value words=("$@")
  known=" $(_option_table | cut -f1 | tr '\n' ' ')"
  paths=" $(_option_table | sed -n 's/\t\(FILE\|DIR\)\b.*//p' | tr '\n' ' ')"
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [[ $1 != -h && $1 != --help ]] || { _help && exit 0; }
    [[ $1 == --* ]] || fail 2 "unexpected '$1'; options start with --, ESPnet's go after a lone --"
    name=${1#--}
    name=${name%%=*}
    [[ $known == *" ${name//-/_} "* ]] ||
      _refuse_option $((${#words[@]} - $#)) "${words[@]}"
    name=${name//-/_}
    if [[ $1 == *=* ]]; then
      value=${1#*=}
    elif [[ ${!name} =~ ^(true|false)$ && ! ${2:-} =~ ^(true|false)$ ]]; then
      value=true
    else
      [[ $# -ge 2 && $2 != --* ]] || fail 2 "--$name needs a value; --help shows an example"
      value=$2
      shift
    fi
    shift
    _set_option "$name" "$value"
  done
  [ $# -eq 0 ] || extra=("${@:2}")
  _prepare
}

_prepare() {
  if [ -n "${config:-}" ]; then
    [ -f "$config" ] || _refuse_config
    exp=${config##*/}
    exp=${exp%.*}
    exp=exp/${exp#train_}
  fi
  trap _finish EXIT
  # All stages but the training are for the first node.
  [ "$num_nodes" -le 1 ] || node=${SLURM_NODEID:-${GROUP_RANK:-${NODE_RANK:-0}}}
  [ "$dry_run" = false ] || return 0
  type -P flock >/dev/null || fail 1 "no flock here; install the package util-linux"
  "$root/tools/install.sh" --if_needed || exit 1
  mkdir -p "$exp/log"
  [ "$node" = 0 ] || return 0
  if [ -n "$launcher" ]; then
    type -P sbatch >/dev/null || fail 1 "no sbatch here; run this where Slurm takes jobs"
    return 0
  fi
  _refuse_gpus
  # Held by this shell alone, so that it is free as soon as the shell has ended.
  exec 8<"$exp"
  flock -n 8 || fail 1 "process $(cat "$exp/.lock" 2>/dev/null || true) runs in $exp; wait for it or end it"
  echo $$ >"$exp/.lock"
  export ESPNET_EXT_HOLDS=$exp # the verbs of the stages need no lock of their own
}

_refuse_gpus() { # before the first stage, not after hours of features; torch counts again
  local count=0
  [ "$ngpu" -gt 0 ] && [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ] || return 0
  [ ! -e /dev/kfd ] || return 0 # AMD's
  ! type -P nvidia-smi >/dev/null || count=$(nvidia-smi -L | grep -c '^GPU' || true)
  [ "$ngpu" -le "$count" ] ||
    fail 2 "--ngpu $ngpu: nvidia-smi lists $count GPUs here; --ngpu 0 is the CPU"
}

_refuse_config() {
  local names near where=$PWD/conf
  [ "$caller_dir" != "$PWD" ] || where=conf
  names=$(find conf -name 'train_*.yaml' -printf '%f\n' 2>/dev/null) || true
  [ -n "$names" ] || fail 2 "no config '$config', this recipe has none; write conf/train_NAME.yaml"
  near=$(_nearest "${config##*/}" "$names" 0.7)
  [ -z "$near" ] || near=" did you mean '$(find conf -name "$near" -print -quit)'?"
  fail 2 "no config '$config';$near find $(printf '%q' "$where") -name 'train_*' lists all"
}

_called() { # a command that calls this recipe with the words "$@"
  local me=$recipe_script
  [ "$caller_dir" != "$root" ] || me=${recipe_script#"$root"/}
  printf '%q' "$me"
  [ $# -eq 0 ] || printf ' %q' "$@"
}

_command_line() { # how to call this recipe with the user's options and those in "$@"
  local words=("$@" "${given[@]}")
  [ ${#extra[@]} -eq 0 ] || words+=(-- "${extra[@]}")
  _called "${words[@]}"
}

# stage N "title" command...: never call it inside if, && or ||, where bash ignores set -e.
stage() {
  local number=$1 title=$2 start=$SECONDS codes guard=(_strict)
  shift 2
  [ "$number" -ge "$stage" ] || return 0
  if [ "$number" -gt "$stop_stage" ]; then
    left_out+=("$number")
    return 0
  fi
  [ "$node" = 0 ] || [ "$number" -eq 4 ] || return 0
  ran=$((ran + 1))
  if [ -n "$launcher" ]; then
    _submit "$number" "$title" "$@"
    return 0
  fi
  echo "== stage $number: $title"
  if [ "$dry_run" != false ]; then
    printf '  %s\n' "$(printf '%q ' "$@")"
    return 0
  fi
  local log=$exp/log/stage$number.log
  [ "$node" = 0 ] || log=$exp/log/stage$number.node$node.log
  printf '# %s: %s\n' "$(date -Is)" "$(printf '%q ' "$@")" >>"$log" || fail 1 "cannot write $log"
  # Data, features and tokens belong to all configs of the recipe: one run at a time makes them.
  if [ "$number" -le 3 ]; then
    exec 7>>exp/.data.lock
    flock -n 7 || {
      echo "stage $number: waiting for another run of this recipe that prepares its data"
      flock 7
    }
  fi
  if [ "$(type -t "$1")" = file ]; then
    # If this shell is killed, so is the command: two at work on one folder would spoil it.
    ! type -P setpriv >/dev/null || guard=(setpriv --pdeathsig KILL)
    [ "$number" -ne 4 ] || [ -n "$user_threads" ] || guard+=(env -u OMP_NUM_THREADS)
  fi
  set +e
  "${guard[@]}" "$@" 7>&- 8>&- 2>&1 | tee -ai "$log" 7>&- 8>&-
  codes=("${PIPESTATUS[@]}")
  set -e
  exec 7>&-
  [ "${codes[0]}" -eq 0 ] ||
    fail "${codes[0]}" "stage $number ($title) ended with exit code ${codes[0]}; log: $PWD/$log;" \
      "to resume: $(_command_line --stage "$number")"
  [ "${codes[1]}" -eq 0 ] || fail 1 "stage $number ($title): its log $PWD/$log cannot be written"
  echo "== stage $number: done in $((SECONDS - start)) s"
}

# _submit N "title" command...: as a Slurm job that starts when the one before has succeeded.
_submit() {
  local number=$1 title=$2 words=() job
  shift 2
  words=(sbatch --parsable --job-name "$(basename "$exp").stage$number"
  --output "$PWD/$exp/log/stage$number.slurm%j.log" --open-mode append)
  [ -z "$submitted" ] || words+=(--dependency "afterok:$submitted" --kill-on-invalid-dep yes)
  # shellcheck disable=SC2206 # several options, with blanks between
  words+=($sbatch)
  if [ "$number" -eq 4 ]; then
    words+=(--nodes "$num_nodes")
    [ "$ngpu" -eq 0 ] || words+=(--gpus-per-node "$ngpu")
    [ -n "$user_threads" ] || words=(env -u OMP_NUM_THREADS "${words[@]}") # the job inherits it
    words+=("$root/utils/slurm/train.sh" "$@")
  else
    [ "$number" -ne 6 ] || [ "$device" = cpu ] || words+=(--gpus-per-node 1)
    # Slurm runs a copy of a script, which would not find the repository.
    words+=(--wrap "$(printf '%q ' "$recipe_script" --stage "$number" --stop_stage "$number" "${given[@]}")")
  fi
  echo "== stage $number: $title"
  if [ "$dry_run" != false ]; then
    submitted="<stage $number>"
    printf '  %s\n' "$(printf '%q ' "${words[@]}")"
    return 0
  fi
  job=$("${words[@]}") || fail 1 "sbatch does not take stage $number; see the lines above"
  submitted=${job%%;*}
  echo "  job $submitted"
}

# standard_stages [FIRST [LAST]]: stages 2 to 8, alike in every recipe.
standard_stages() {
  local number only=(${variant:+--variant "$variant"}) spread=()
  for ((number = ${1:-2}; number <= ${2:-8}; number++)); do
    case $number in
      2)
        stage 2 "Features" \
          espnet-ext features "$config" ${test_sets:+--sets "$test_sets"} --nj "$nj"
        ;;
      3) stage 3 "Tokens" espnet-ext tokens "$config" ;;
      4)
        [ "$processes" -eq 1 ] || spread+=(--processes "$processes")
        [ "$num_nodes" -eq 1 ] || spread+=(--num_nodes "$num_nodes")
        stage 4 "Train" espnet-ext train "$config" --ngpu "$ngpu" "${spread[@]}" \
          ${threads:+--threads "$threads"} -- "${extra[@]}"
        ;;
      5) stage 5 "Average and deploy" espnet-ext deploy "$config" "${only[@]}" ;;
      6)
        stage 6 "Decode" \
          espnet-ext decode "$config" --sets "$test_sets" --nj "$nj" --device "$device" "${only[@]}"
        ;;
      7)
        stage 7 "Score" espnet-ext score "$config" --sets "$test_sets" "${only[@]}" \
          ${baseline:+--baseline "$baseline"}
        ;;
      8) stage 8 "Report" espnet-ext report "$config" "${only[@]}" ;;
    esac
  done
}

_strict() { # the guard of a shell function: it runs in a subshell, which has lost set -e
  set -e
  "$@"
}

_finish() {
  local code=$?
  [ "$code" -eq 0 ] || exit "$code"
  [ "$ran" -gt 0 ] || fail 2 "no stage from $stage to $stop_stage; see --dry_run for the stages"
  if [ "$dry_run" != false ]; then
    echo "dry run: nothing was done; leave --dry_run out to run this"
  elif [ "$node" != 0 ]; then
    echo "the first node goes on alone"
  elif [ -n "$launcher" ]; then
    echo "submitted: squeue --me shows the jobs, $PWD/$exp/log has their logs"
  elif [ ${#left_out[@]} -gt 0 ]; then
    echo "next: $(_command_line --stage "${left_out[0]}")"
  else
    echo "all done: see $exp; RESULTS.md has the published runs;" \
      "try another config: --config conf/train_NAME.yaml"
  fi
}
