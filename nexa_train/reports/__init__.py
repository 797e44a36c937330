"""The reports on a student: evaluation, preflight, model card."""
