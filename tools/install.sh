#!/usr/bin/env bash
# Make tools/venv (or $ESPNET_EXT_VENV) and install this repository into it, in pinned versions.
# Run it as often as you like: it does nothing when all is in place, and goes on after a kill.
# With --if_needed it is silent when all is in place and leaves an environment alone that you
# made yourself (one with espnet-ext in it that this script did not make).
# Example: tools/install.sh
#          ESPNET_EXT_VENV=~/venvs/espnet-ext tools/install.sh
set -euo pipefail
# Variables that change what a shell, a tool or Python does.
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT GLOBIGNORE BASH_ENV ENV "${!PYTHON@}"
set +fC +o posix
shopt -u failglob nullglob dotglob nocaseglob nocasematch
export PYTHONNOUSERSITE=1 PYTHONUTF8=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${ESPNET_EXT_VENV:-$root/tools/venv}
constraints=$root/tools/constraints.txt
stamp_file=$venv/.espnet_ext_installed
need_gb=8 # torch brings its CUDA libraries: about 6 GB, and room to unpack them

fail() {
  echo "install.sh: error: $*" >&2
  exit 1
}

is_good_python() { # is_good_python PROGRAM [MINOR_VERSION]
  local minors=("${2:-12}" "${2:-13}")
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, int(v)) for v in sys.argv[1:]])' \
    "${minors[@]}" 2>/dev/null
}

# Each candidate is run, not only looked up: pyenv puts names on PATH that do not work. 3.12 is
# looked for everywhere before 3.13, for which a package has to be compiled.
find_python() {
  local candidate minor
  for minor in 12 13; do
    for candidate in python3.12 python3.13 python3 \
      "${PYENV_ROOT:-${HOME:-/}/.pyenv}"/versions/3.1[23].*/bin/python; do
      if is_good_python "$candidate" "$minor"; then
        type -P "$candidate"
        return
      fi
    done
    if candidate=$(uv python find "3.$minor" 2>/dev/null) &&
      is_good_python "$candidate" "$minor"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.12 or 3.13 on PATH, in ~/.pyenv/versions or known to uv;" \
    "install one ('apt-get install python3.12 python3.12-venv', 'pyenv install 3.12' or" \
    "'uv python install 3.12') and run tools/install.sh again"
}

# What the environment was made from; a change makes it stale.
fingerprint() {
  {
    echo "$root"
    cat "$root/setup.py" "$constraints"
  } | sha256sum | cut -d' ' -f1
}

is_current() {
  [ -f "$stamp_file" ] && [ "$(<"$stamp_file")" = "$(fingerprint)" ] &&
    [ -x "$venv/bin/espnet-ext" ] && is_good_python "$venv/bin/python"
}

check_folder() {
  if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "$venv holds other files; empty it, or set ESPNET_EXT_VENV to another folder"
  fi
  mkdir -p "$venv" 2>/dev/null || fail "cannot write $venv; set ESPNET_EXT_VENV to a folder of yours"
}

check_disk() {
  local known=""
  need_space "$venv" "$need_gb" ESPNET_EXT_VENV
  need_space "$(uv_cache)" "$need_gb" UV_CACHE_DIR
  need_space "${TMPDIR:-/tmp}" 1 TMPDIR
}

# need_space FOLDER GB VARIABLE: what shares a disk with an earlier folder is linked, not copied.
need_space() {
  local folder=$1 existing=$1 free_kb mount used_kb=0
  while [ ! -d "$existing" ]; do existing=$(dirname "$existing"); done
  read -r free_kb mount < <(df -Pk "$existing" | awk 'NR == 2 { print $4, $6 }')
  [[ $known != *"|$mount|"* ]] || return 0
  known+="|$mount|"
  [ "$free_kb" -lt $(($2 * 1024 * 1024)) ] || return 0
  # What is there already counts: an install that was killed needs only the rest.
  [ "$2" -eq 1 ] || [ ! -d "$folder" ] || used_kb=$(du -sk "$folder" | cut -f1)
  if [ $((free_kb + used_kb)) -lt $(($2 * 1024 * 1024)) ]; then
    fail "about $2 GB are needed and the disk of $folder has $((free_kb / 1024 / 1024)) GB" \
      "free; free some, or set $3 to a folder on another disk"
  fi
}

# step TITLE COMMAND...: the command's own words go to a log, one line of ours to the user.
step() {
  local title=$1
  shift
  echo "install.sh: $title"
  "$@" >>"$log" 2>&1 || fail "the step '$title' failed (details: $log);" \
    "$(remedy), then run tools/install.sh again to go on"
}

remedy() { # what the log of a failed step asks for
  local said
  said=$(<"$log")
  case ${said,,} in
    *"no space left"* | *"disk quota exceeded"* | *"os error 28"*)
      echo "a disk is full: free some on those of $venv, ${TMPDIR:-/tmp} and $(uv_cache), or set" \
        "TMPDIR and UV_CACHE_DIR to folders on another disk"
      ;;
    *"error: command '"*"' failed"* | *"python.h: no such file"*)
      echo "a package had to be compiled: use Python 3.12, for which all are ready made, or" \
        "install a compiler ('apt-get install build-essential python3-dev')"
      ;;
    *) echo "check the network and the proxy settings" ;;
  esac
}

uv_cache() { echo "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/}/.cache}/uv}"; }

set_uv() {
  local candidate
  for candidate in "$venv/bin/uv" uv; do
    if "$candidate" --version >/dev/null 2>&1; then
      uv=$(type -P "$candidate")
      return
    fi
  done
  return 1
}

make_environment() {
  local python
  python=$(find_python)
  if set_uv; then
    is_good_python "$venv/bin/python" ||
      step "make $venv with $("$python" -V)" "$python" -m venv --without-pip --clear "$venv"
  else
    # uv is the first package of all, so nothing is lost by starting afresh.
    "$python" -c 'import ensurepip' 2>/dev/null ||
      fail "$python has no ensurepip; install uv or the package python3.12-venv and run again"
    step "make $venv with $("$python" -V)" "$python" -m venv --clear "$venv"
    step "fetch uv" "$venv/bin/python" -m pip install -q -c "$constraints" uv
    set_uv || fail "uv does not run after its installation; see $log"
  fi
}

main() {
  if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
  fi
  [ "${1:---if_needed}" = --if_needed ] || fail "unknown option '$1'; see tools/install.sh --help"
  if is_current; then
    [ -n "${1:-}" ] || echo "install.sh: $venv is up to date"
    exit 0
  fi
  if [ -n "${1:-}" ] && [ -x "$venv/bin/espnet-ext" ] && [ ! -f "$stamp_file" ]; then
    exit 0
  fi
  check_folder
  if type -P flock >/dev/null; then
    exec 9>"$venv.lock"
    flock -n 9 || {
      echo "install.sh: waiting for another install into $venv to end"
      flock 9
      ! is_current || exit 0
    }
  fi
  check_disk
  log=$venv.install.log
  : >"$log"
  make_environment
  echo unfinished >"$stamp_file"
  step "install espnet-ext and what it needs (several GB; minutes)" \
    "$uv" pip install --compile-bytecode --python "$venv/bin/python" --constraints "$constraints" \
    --build-constraints "$constraints" -e "${root}[dev]"
  fingerprint >"$stamp_file.tmp"
  mv "$stamp_file.tmp" "$stamp_file"
  echo "install.sh: $venv is ready"
}

main "$@"
