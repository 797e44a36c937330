#!/usr/bin/env bash
# One session of a run: wait for its inputs, run its command, keep its log and its exit code.
#
#   run_stage.sh SESSION RUN_DIR
#
# Reads RUN_DIR/plan, NUL-terminated fields per session: session, after, ready_by, ready_file,
# number of words, the words of the command. Waits until `after` has ended with 0; then, a server, until
# `ready_by` has written `ready_file`, whose name that session has in NEXA_SERVER_WANTED. If one of
# them failed, ends with 75; if `ready_by` ended without the file, with 0: nobody needed the server.
# Writes RUN_DIR/SESSION.{pid,started,log,seconds} and, last and by rename, SESSION.exit. A log that cannot
# be written neither fails nor stops the command.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
NO_PID_YET_SECONDS=60
CHILD=
STOPPED=
COMMAND=()

# To the pane and to the log; a closed terminal is no reason to fail.
say() { printf '[nexa] %s\n' "$*" >&3 || true; }

read_plan() {
  local session after ready_by ready_file count word words
  while IFS= read -r -d '' session && IFS= read -r -d '' after && IFS= read -r -d '' ready_by &&
    IFS= read -r -d '' ready_file && IFS= read -r -d '' count; do
    words=()
    while ((count-- > 0)); do
      IFS= read -r -d '' word
      words+=("$word")
    done
    if [[ $session == "$SESSION" ]]; then
      AFTER=$after READY_BY=$ready_by READY_FILE=$ready_file COMMAND=("${words[@]}")
    fi
    if [[ $ready_by == "$SESSION" ]]; then export NEXA_SERVER_WANTED=$ready_file; fi
  done <"$RUN_DIR/plan"
  if ((${#COMMAND[@]} == 0)); then
    printf '%s\n' "error: $RUN_DIR/plan has no session $SESSION" >&2
    exit 2
  fi
}

# The last step: downstream sessions and the launcher read this file.
record_exit() {
  local code=$1
  trap '' INT TERM HUP
  if { echo "$code" >"$FILES.exit.tmp"; } 2>/dev/null; then mv -f "$FILES.exit.tmp" "$FILES.exit"; fi
}

# Whether the wrapper of session $1 is gone; one that never wrote its pid is given a minute.
is_gone() {
  local pid
  pid=$(cat "$RUN_DIR/$1.pid" 2>/dev/null) || true
  if [[ -n $pid ]]; then
    if kill -0 "$pid" 2>/dev/null; then return 1; fi
  else
    ((SECONDS > NO_PID_YET_SECONDS))
  fi
}

refuse() {
  say "$SESSION is not started: $1 ended with code $2; its log: $RUN_DIR/$1.log"
  end_log
  exit 75
}

# Wait for session $1 to end with 0, or for file $2 that it writes while it runs.
wait_for() {
  local name=$1 file=${2:-} gone
  say "$SESSION waits for $name"
  while :; do
    gone=false
    if is_gone "$name"; then gone=true; fi
    if [[ -n $file && $file -nt $RUN_DIR/plan ]]; then return; fi
    if [[ -e $RUN_DIR/$name.exit ]]; then
      if [[ $(<"$RUN_DIR/$name.exit") == 0 ]]; then
        if [[ -z $file ]]; then return; fi
        say "$SESSION is not needed: $name is done"
        end_log
        exit 0
      fi
      refuse "$name" "$(<"$RUN_DIR/$name.exit")"
    fi
    # Gone before the file was looked for, and no file: it was killed.
    if $gone; then refuse "$name" 137; fi
    sleep 0.2 || true
  done
}

# TERM to the command and all it started. The session is one process group, this shell its leader.
terminate() {
  trap '' TERM
  kill -TERM -- "-$$" 2>/dev/null || kill -TERM "$CHILD" 2>/dev/null || true
  trap 'on_signal 143' TERM
}

# A closed terminal hangs up this shell alone, so its signal is passed on like the others.
on_signal() {
  STOPPED=$1
  if [[ -z $CHILD ]]; then exit "$STOPPED"; fi
  terminate
}

# The log is complete before the exit file exists; a process left behind delays it by at most 5 s.
end_log() {
  local tenths=0
  exec 3>&-
  if [[ -z $TEE ]]; then sleep 0.5; fi
  while [[ -n $TEE ]] && kill -0 "$TEE" 2>/dev/null && ((tenths++ < 50)); do sleep 0.1 || true; done
}

run_command() {
  local code=0
  export NEXA_RUN_ID NEXA_PROGRESS_FILE=$FILES.progress PYTHONUNBUFFERED=1
  NEXA_RUN_ID=$(basename "$RUN_DIR")
  PATH=$ROOT/.venv/bin:$PATH
  # torch's threads spin while they wait: briefly is fast, the default is ruinous on a busy machine.
  export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-5000}
  # Bars overwrite their line; in a log they would be one line of 20 kB. Stages print lines instead.
  export TQDM_DISABLE=1
  { : >"$FILES.started"; } 2>/dev/null || true
  SECONDS=0
  "${COMMAND[@]}" >&3 2>&1 3>&- </dev/null &
  CHILD=$!
  # A trapped signal ends `wait` early; the command is still there then.
  wait "$CHILD" || code=$?
  while kill -0 "$CHILD" 2>/dev/null; do
    code=0
    wait "$CHILD" || code=$?
  done
  code=${STOPPED:-$code}
  { echo "$SECONDS" >"$FILES.seconds"; } 2>/dev/null || true
  case $code in
    0) say "$SESSION is done after $SECONDS s" ;;
    129 | 130 | 143) say "$SESSION was stopped after $SECONDS s (code $code)" ;;
    *) say "$SESSION failed with code $code after $SECONDS s; its log: $FILES.log" ;;
  esac
  end_log
  return "$code"
}

main() {
  if (($# != 2)); then
    printf '%s\n' "usage: run_stage.sh SESSION RUN_DIR" >&2
    exit 2
  fi
  SESSION=$1 RUN_DIR=$2 FILES=$2/$1
  read_plan
  trap 'record_exit $?' EXIT
  trap 'on_signal 130' INT
  trap 'on_signal 143' TERM
  trap 'on_signal 129' HUP
  trap : PIPE
  if [[ ! -s $FILES.pid ]]; then { echo $$ >"$FILES.pid"; } 2>/dev/null || true; fi
  exec 3> >(trap '' INT TERM HUP && exec tee -a -- "$FILES.log")
  TEE=${!:-} # bash before 4.4 does not tell
  if [[ -n $AFTER ]]; then wait_for "$AFTER"; fi
  if [[ -n $READY_BY ]]; then wait_for "$READY_BY" "$READY_FILE"; fi
  run_command
}

main "$@"
