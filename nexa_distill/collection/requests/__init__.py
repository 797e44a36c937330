"""One request: its JSON, connection, rate limit, budget and retries."""
