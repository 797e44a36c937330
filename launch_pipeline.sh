#!/usr/bin/env bash
# Raw text to an evaluated student, in tmux sessions: bash launch_pipeline.sh --help
exec bash "$(dirname "${BASH_SOURCE[0]}")/scripts/shell/orchestration/launch_pipeline.sh" "$@"
