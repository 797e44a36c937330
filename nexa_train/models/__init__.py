"""Load, serve and ask a model on this machine."""
