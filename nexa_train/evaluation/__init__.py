"""Inside `evaluate_student`: gate results, held-out loss, metrics."""
