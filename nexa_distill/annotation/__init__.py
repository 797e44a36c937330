"""Human decisions: the event log, the current state per answer, preferences."""
