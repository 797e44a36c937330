"""The cost of answers: the estimate before a run, the report after it."""
