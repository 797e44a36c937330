"""The request journal: every request, attempt and answer, in SQLite."""
