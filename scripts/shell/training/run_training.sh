#!/usr/bin/env bash
# Train the student: bash scripts/shell/training/run_training.sh [CONFIG] [true|false|fsdp] [flags...]
#   CONFIG  the student's settings (default: configs/baseline_distill.yaml)
#   true    several processes by `accelerate launch`: one per GPU, or 2 on a CPU
#   fsdp    the same, and each keeps a part of weights, gradients and moments
#   flags   go to nexa_train.train_sft, for example --dataset FILE --output DIR
# NEXA_PYTHON names another Python than .venv's. NEXA_PROCESSES: how many on this machine. Several
# machines: NEXA_MACHINES, NEXA_MACHINE_RANK (0..), NEXA_MAIN_ADDRESS and NEXA_MAIN_PORT of rank 0.
set -euo pipefail

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0"
}

choose_python() {
  local root=$1
  if [[ -n ${NEXA_PYTHON:-} ]]; then
    printf '%s\n' "$NEXA_PYTHON"
  elif [[ -x $root/.venv/bin/python ]]; then
    printf '%s\n' "$root/.venv/bin/python"
  else
    command -v python3
  fi
}

launch_many() {
  local python=$1 gpus count machines=${NEXA_MACHINES:-1} code=0
  shift
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  count=$((${NEXA_PROCESSES:-$((gpus > 0 ? gpus : 2))} * machines))
  # Every value that accelerate would otherwise take from its own file or warn about.
  local -a options=(--num_processes "$count" --num_machines "$machines" --mixed_precision no)
  options+=(--dynamo_backend no --main_process_port "${NEXA_MAIN_PORT:-0}")
  if ((machines > 1)); then
    options+=(--machine_rank "${NEXA_MACHINE_RANK:?of this machine, 0 on the first}")
    options+=(--main_process_ip "${NEXA_MAIN_ADDRESS:?the address of machine 0}")
    : "${NEXA_MAIN_PORT:?a free port of machine 0, the same on all machines}"
  fi
  if ((count > 1)); then
    options+=(--multi_gpu) # the name of its launcher of many processes, on a CPU too
  fi
  if ((gpus == 0)); then
    export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  fi
  # accelerate turns every failure into 1: the first process that fails leaves its own code.
  NEXA_EXIT_FILE=$(mktemp)
  export NEXA_EXIT_FILE
  "$python" -m accelerate.commands.launch "${options[@]}" -m nexa_train.train_sft "$@" || code=$?
  if [[ -s $NEXA_EXIT_FILE ]]; then code=$(<"$NEXA_EXIT_FILE"); fi
  rm -f "$NEXA_EXIT_FILE"
  return "$code"
}

main() {
  local config=${1:-configs/baseline_distill.yaml} distributed=${2:-false}
  local root python
  case $config in -h | --help) usage && return 0 ;; esac
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
  if [[ ! -f $config && ! -f $root/$config ]]; then
    printf 'error: %s: no such settings file; the one that ships is configs/baseline_distill.yaml\n' \
      "$config" >&2
    return 66
  fi
  cd "$root"
  python=$(choose_python "$root")
  shift $(($# < 2 ? $# : 2))
  # As run_stage.sh does: brief spinning of torch's threads, for a busy machine's sake.
  export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-5000}
  case $distributed in
    true) launch_many "$python" --config "$config" "$@" ;;
    fsdp) launch_many "$python" --config "$config" --shard "$@" ;;
    false) exec "$python" -m nexa_train.train_sft --config "$config" "$@" ;;
    *)
      printf 'error: the second argument is %s; expected true or fsdp (many processes) or false\n' \
        "$distributed" >&2
      return 2
      ;;
  esac
}

main "$@"
