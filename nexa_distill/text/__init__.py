"""Pure functions of a text: words, n-grams, hashes, personal data, reasoning, JSON schemas."""
