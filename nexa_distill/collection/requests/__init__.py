"""One request: its JSON, its connection, its rate, its budget, and when it is retried."""
