"""What a terminal sees: command-line flags, exit codes, progress."""
