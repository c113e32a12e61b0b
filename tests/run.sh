#!/usr/bin/env bash
# Run all checks and the default tests; what is given goes to pytest.
# Example: tests/run.sh
#          tests/run.sh tests/unit -k config
#          tests/run.sh -m slow        (the longer ones: see CONTRIBUTING.md)
set -euo pipefail
# Variables that change what a shell, a tool or Python does.
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT GLOBIGNORE BASH_ENV ENV "${!PYTHON@}"
set +fC +o posix
shopt -u failglob nullglob dotglob nocaseglob nocasematch
export PYTHONNOUSERSITE=1 PYTHONUTF8=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 0
fi
tools/install.sh --if_needed
export PATH="${ESPNET_EXT_VENV:-$root/tools/venv}/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

shell_files=(.ci/run)
while IFS= read -r file; do
  shell_files+=("$file")
done < <(find egs tests tools utils -name venv -prune -o \
  \( -name exp -o -name downloads \) -prune -o -name '*.sh' -print | LC_ALL=C sort)

failed=()
check() { # check NAME COMMAND...: its output is shown only if it fails
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "ok      $name"
  else
    printf 'FAILED  %s\n%s\n' "$name" "$output"
    failed+=("$name")
  fi
}

check "ruff check" ruff check --quiet .
check "ruff format" ruff format --quiet --diff .
check "mypy" mypy
check "import layers" lint-imports
check "shellcheck" shellcheck "${shell_files[@]}"
check "shfmt" shfmt -d "${shell_files[@]}"
code=0
[ ${#failed[@]} -eq 0 ] || code=1
echo "checks: $((6 - ${#failed[@]})) of 6 passed${failed[*]:+; failed: ${failed[*]}}"

# pytest closes the run: its last line counts the tests.
# Tests of one file share a trained recipe, so a file stays in one process.
pytest -q -n 2 --dist loadfile "$@" || code=$?
exit "$code"
