#!/usr/bin/env bash
# Every check of the project: ruff, mypy, shellcheck, pytest. Makes .venv first.
# Arguments go to pytest, and then only pytest runs: run_tests.sh tests/deduplication/test_dedup.py -k empty
# --full alone: every check, and pytest with all cases of its sweeps (hours; see CONTRIBUTING.md).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

check() {
  local started=$SECONDS
  printf '%s\n' "--- $1" >&2
  "${@:2}" || {
    printf '%s\n' "error: $1 failed: ${*:2}" >&2
    exit 1
  }
  printf '%s\n' "--- $1: ok ($((SECONDS - started)) s)" >&2
}

shell_scripts() {
  find . -name '*.sh' -not -path './.venv/*' -not -path './data/*' -print0
  printf '%s\0' .ci/run
}

lint_shell() { shell_scripts | xargs -0 shellcheck; }

# One more than there are cores: tests also wait for servers, disks and clocks.
workers() {
  local cores
  cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
  echo $((cores < 4 ? cores + 1 : 4))
}

# The files that have tests of the marker: pytest would import all to find them.
files_marked() { grep -rl --include='test_*.py' "pytest\.mark\.$1" tests | sort; }

main() {
  cd "$ROOT"
  if ! command -v tmux >/dev/null; then
    printf '%s\n' "error: the tests start real tmux sessions; install tmux first:" \
      "  apt-get install tmux | dnf install tmux | brew install tmux" >&2
    exit 69
  fi
  bash scripts/shell/setup/environment.sh --dev
  PATH=$ROOT/.venv/bin:$PATH
  # Tests run side by side, and so do trainings in them: one thread each.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  unset PYTHONDONTWRITEBYTECODE # hundreds of processes import the project
  local -a full=()
  local file
  if [[ $* == --full ]]; then
    full=(--full)
  elif (($# > 0)); then
    check "pytest" python -m pytest "$@"
    return
  fi
  local -a alone=()
  while IFS= read -r file; do alone+=("$file"); done < <(files_marked alone)
  check "ruff check" ruff check .
  check "ruff format" ruff format --check .
  check "mypy" mypy --num-workers 2
  check "shellcheck" lint_shell
  # loadfile: what a file shares is made once; the order is that of tests/conftest.py.
  check "pytest, side by side" python -m pytest -m "not alone" -n "$(workers)" \
    --dist loadfile --no-loadscope-reorder ${full[@]+"${full[@]}"}
  # Tests of keys and seconds need a core for themselves: two files at a time.
  check "pytest, alone" python -m pytest -m alone -n 2 --dist loadfile \
    ${full[@]+"${full[@]}"} ${alone[@]+"${alone[@]}"}
}

main "$@"
