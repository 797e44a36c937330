#!/usr/bin/env bash
# The test command: everything on a clean clone, or one part: bash run_tests.sh tests/deduplication/test_dedup.py
exec bash "$(dirname "${BASH_SOURCE[0]}")/scripts/shell/setup/run_tests.sh" "$@"
