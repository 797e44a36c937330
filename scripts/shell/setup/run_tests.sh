#!/usr/bin/env bash
# Every check of the project: ruff, mypy, shellcheck, pytest. Makes .venv first.
# Arguments go to pytest, and then only pytest runs: run_tests.sh tests/deduplication/test_dedup.py -k empty
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
  if (($# > 0)); then
    check "pytest" python -m pytest "$@"
    return
  fi
  check "ruff check" ruff check .
  check "ruff format" ruff format --check .
  check "mypy" mypy
  check "shellcheck" lint_shell
  check "pytest, side by side" python -m pytest -m "not alone" -n auto --maxprocesses 4 --dist loadfile
  check "pytest, one by one" python -m pytest -m alone
}

main "$@"
