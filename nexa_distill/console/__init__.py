"""Command-line flags, exit codes and progress."""
