"""Inside `collect_teacher` and `probe`: ask a model API for the answers that are missing."""
