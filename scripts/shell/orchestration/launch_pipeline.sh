#!/usr/bin/env bash
# Start the pipeline's sessions in tmux and watch them. `python -m nexa_distill.pipeline` plans the
# sessions and their order; each session waits for its own inputs (run_stage.sh).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
HERE=$ROOT/scripts/shell/orchestration
# shellcheck source=scripts/shell/orchestration/sessions.sh
source "$HERE/sessions.sh"

usage() {
  cat <<'HELP'
usage: bash launch_pipeline.sh [options]

Raw text to a trained and evaluated student. Finished work is skipped; after a failure the same
command continues. Each stage is a tmux session: tmux attach -t filtering

  --config FILE     settings (default: configs/distill_config.yaml)
  --input PATH      raw data: Parquet, JSONL, JSON, CSV, a folder of .txt/.md, or hf:NAME[:SPLIT] of the Hub
  --task LIST       what is asked: hypothesis,methodology (default), summarize, question_answer, extract_json,
                    chat, or a FILE with {context} in it, or a FOLDER of yours
  --limit N         the first N raw rows
  --answers FILE    answers that exist already, in place of a teacher (needless for answers in the raw data)
  --provider NAME   the teacher, one of providers: in the settings; asked also if the raw data has answers
  --base-url URL    another server with OpenAI's API as the teacher: http://.../v1
  --model NAME      the model to ask there
  --name NAME       a run of its own: files in data/runs/NAME, sessions NAME/filtering, ...
  --replace         replace a finished student by one of other input, limit or settings
  --from STAGE      start at this stage or session
  --only STAGE      this stage's session alone
  --dry-run         print the plan and its reasons, the columns that are read, and one prompt
  --detach          start and return immediately
  --status          the newest run and its finished stages; with --name, that run's
  --stop            stop this project's sessions; with --name, that run's
  --no-tmux         the same stages, one after the other, in this terminal
  --help            this text

Exit codes: 0 ok, 1 bug, 2 usage, 3 quality gate, 65 bad input, 66 input missing, 69 provider or tool unusable,
74 disk, 75 already running or a name is taken, 77 budget, 130 Ctrl-C, 143 stopped.
HELP
}

# A path relative to the folder in which it was typed.
from_here() { if [[ $1 == /* || $1 == hf:* || $PWD == "$ROOT" ]]; then echo "$1"; else echo "$PWD/$1"; fi; }

# The same for the files and folders in a list of tasks.
tasks_from_here() {
  local task joined=
  IFS=, read -ra TASKS <<<"$1"
  for task in "${TASKS[@]}"; do
    if [[ $task == */* || -f $task ]]; then task=$(from_here "$task"); fi
    joined+=,$task
  done
  echo "${joined#,}"
}

parse() {
  ACTION=run DETACH=false TMUX_WANTED=true CONFIG=() ASKED=() NAME=
  while (($#)); do
    case $1 in
      --config | --input | --answers | --task | --limit | --provider | --base-url | --model | --name | --from | --only)
        (($# > 1)) || fail 2 "$1 needs a value; see --help"
        case $1 in
          --config) CONFIG+=(--config "$(from_here "$2")") ;;
          --name) NAME=$2 CONFIG+=(--name "$2") ;;
          --limit)
            [[ $2 =~ ^[1-9][0-9]*$ ]] || fail 2 "--limit $2: expected a whole number of at least 1"
            ASKED+=("$1" "$2")
            ;;
          --input | --answers) ASKED+=("$1" "$(from_here "$2")") ;;
          --task) ASKED+=("$1" "$(tasks_from_here "$2")") ;;
          *) ASKED+=("$1" "$2") ;;
        esac
        shift
        ;;
      --replace) ASKED+=("$1") ;;
      --detach) DETACH=true ;;
      --no-tmux) TMUX_WANTED=false ;;
      --dry-run | --status | --stop) ACTION=${1#--} ;;
      --help | -h)
        usage
        exit
        ;;
      -*) fail 2 "unknown option $1; see --help" ;;
      *) fail 2 "unexpected word $1; a stage is named by --only $1 or --from $1, see --help" ;;
    esac
    shift
  done
  # The tmux sessions of a run with a name are NAME/filtering, ...
  PREFIX=${NAME:+$NAME/}
  if $DETACH && ! $TMUX_WANTED; then fail 2 "--detach needs tmux: leave out --no-tmux"; fi
}

pipeline() { "$ROOT/.venv/bin/python" -m nexa_distill.pipeline "$@" ${CONFIG[@]+"${CONFIG[@]}"}; }

require_tmux() {
  command -v tmux >/dev/null || fail 69 "tmux is not installed: apt-get install tmux |" \
    "dnf install tmux | brew install tmux. Or run in this terminal: bash launch_pipeline.sh --no-tmux"
}

# The names of the sessions in the run's plan, in order.
planned() {
  local name count
  while IFS= read -r -d '' name; do
    NAMES+=("$name")
    for _ in 1 2 3; do IFS= read -r -d '' _; done
    IFS= read -r -d '' count
    while ((count-- > 0)); do IFS= read -r -d '' _; done
  done <"$RUN_DIR/plan"
}

# logs/latest is the newest run; data/runs/NAME/config, the settings of the newest launch of NAME.
mark_latest() {
  local logs
  logs=$(dirname "$RUN_DIR")
  ln -sfn "$(basename "$RUN_DIR")" "$logs/latest"
  if [[ -n $NAME ]]; then ln -sfn logs/latest/config "$(dirname "$logs")/config"; fi
}

start_all() {
  local name
  trap 'rm -rf "$RUN_DIR"' EXIT
  for name in "${NAMES[@]}"; do make_way "$name"; done
  trap - EXIT
  mark_latest
  for name in "${NAMES[@]}"; do
    start_session "$name" || fail 75 "tmux could not start session $PREFIX$name (its message is above);" \
      "bash launch_pipeline.sh --stop${NAME:+ --name $NAME} ends the ones before it"
  done
}

# Each stage is a process group of its own, so that Ctrl-C is passed on and not shared.
run_in_order() {
  local name pid current=()
  mark_latest
  set -m
  trap 'kill -INT "${current[@]}" 2>/dev/null || true' INT
  trap 'kill -TERM "${current[@]}" 2>/dev/null || true' TERM HUP
  for name in "${NAMES[@]}"; do
    if [[ $name == teacher ]]; then
      bash "$HERE/run_stage.sh" "$name" "$RUN_DIR" >/dev/null & # beside the others; it has its own log
    else
      bash "$HERE/run_stage.sh" "$name" "$RUN_DIR" &
    fi
    current+=($!)
    [[ $name == teacher ]] || wait_for_end "$!"
  done
  for pid in "${current[@]}"; do wait_for_end "$pid"; done
}

# `wait` ends early when a trapped signal comes.
wait_for_end() { while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done; }

main() {
  parse "$@"
  cd "$ROOT"
  case $ACTION in
    stop)
      stop_all
      if [[ -x .venv/bin/python ]]; then pipeline sweep; fi
      exit
      ;;
    status)
      if [[ -x .venv/bin/python ]]; then pipeline status; else echo "Nothing has run yet."; fi
      exit
      ;;
  esac
  if $TMUX_WANTED && [[ $ACTION == run ]]; then require_tmux; fi
  bash scripts/shell/setup/environment.sh
  if [[ $ACTION == dry-run ]]; then
    pipeline plan ${ASKED[@]+"${ASKED[@]}"}
    exit
  fi
  RUN_DIR=$(pipeline prepare ${ASKED[@]+"${ASKED[@]}"})
  if [[ -z $RUN_DIR ]]; then
    pipeline summary
    exit
  fi
  NAMES=()
  planned
  if $TMUX_WANTED; then start_all; else run_in_order; fi
  if $DETACH; then
    echo "Started: ${NAMES[*]}. tmux attach -t $PREFIX${NAMES[0]} |" \
      "bash launch_pipeline.sh --status${NAME:+ --name $NAME} | --stop${NAME:+ --name $NAME}"
    exit 0
  fi
  exec "$ROOT/.venv/bin/python" -m nexa_distill.pipeline watch "$RUN_DIR" ${CONFIG[@]+"${CONFIG[@]}"}
}

main "$@"
