#!/usr/bin/env bash
# Find, start, replace and stop the pipeline's tmux sessions. Sourced by launch_pipeline.sh.
# Ours carry two tmux options: @nexa_project, the project folder, and @nexa_run, the run's folder.
# Targets are always "=name": a bare `-t training` would also match training_eval. A run with a name
# has sessions NAME/filtering, ... (PREFIX is "NAME/" or empty); its files have the part after the slash.

STOP_GRACE_SECONDS=30

fail() {
  printf 'error: %s\n' "${*:2}" >&2
  exit "$1"
}

# name|pane_dead|pane_pid|run folder|project, for every session of the tmux server.
sessions() {
  tmux list-sessions \
    -F '#{session_name}|#{pane_dead}|#{pane_pid}|#{@nexa_run}|#{@nexa_project}' 2>/dev/null || true
}

# Whether a session's wrapper still works: pane_dead $1, wrapper's pid $2, exit file $3.
works() { [[ $1 == 0 && ! -e $3 ]] && kill -0 "$2" 2>/dev/null; }

# Make way for session $1: a finished session of ours is removed; any other one with its name is
# kept, and an error.
make_way() {
  local wanted=$PREFIX$1 name dead pid run
  while IFS='|' read -r name dead pid run _; do
    [[ $name == "$wanted" ]] || continue
    if [[ -z $run ]]; then
      fail 75 "a tmux session named $name exists and is not the pipeline's: tmux attach -t '=$name'" \
        "shows it; end or rename it (tmux rename-session -t '=$name' NEW), then start again"
    fi
    if works "$dead" "$pid" "$run/${name##*/}.exit"; then
      fail 75 "session $name runs already ($run): tmux attach -t '=$name' shows it," \
        "bash launch_pipeline.sh --stop (in its project) stops it"
    fi
    tmux kill-session -t "=$name"
  done < <(sessions)
}

# remain-on-exit and our marks are set in the call that starts the session: a second call would
# come too late for a stage that ends immediately.
start_session() {
  local name=$1 pid
  pid=$(tmux new-session -d -P -F '#{pane_pid}' -s "$PREFIX$name" -x 200 -y 50 -c "$ROOT" \
    bash "$HERE/run_stage.sh" "$name" "$RUN_DIR" \; \
    set-option -w -t "=$PREFIX$name:" remain-on-exit on \; \
    set-option -t "=$PREFIX$name:" @nexa_project "$ROOT" \; \
    set-option -t "=$PREFIX$name:" @nexa_run "$RUN_DIR") || return 1
  echo "$pid" >"$RUN_DIR/$name.pid"
}

# Whether session $1 of project $2 is of this project, and of the run with the chosen name, if any.
is_chosen() { [[ $2 == "$ROOT" && $1 == "$PREFIX"* ]]; }

# TERM to every working session of this project, time to end well, then close all of its sessions.
stop_all() {
  local name dead pid run project stopping=() tenths=0 file
  while IFS='|' read -r name dead pid run project; do
    if is_chosen "$name" "$project" && works "$dead" "$pid" "$run/${name##*/}.exit"; then
      echo "stopping $name"
      kill -TERM "$pid" && stopping+=("$run/${name##*/}.exit")
    fi
  done < <(sessions)
  for file in ${stopping[@]+"${stopping[@]}"}; do
    while [[ ! -e $file ]] && ((tenths++ < STOP_GRACE_SECONDS * 10)); do sleep 0.1; done
  done
  while IFS='|' read -r name _ _ _ project; do
    if is_chosen "$name" "$project"; then tmux kill-session -t "=$name" || true; fi
  done < <(sessions)
  local what="sessions"
  if ((${#stopping[@]} == 1)); then what="session"; fi
  echo "Stopped ${#stopping[@]} running $what; the same launch command continues."
}
