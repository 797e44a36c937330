"""Pure functions of text: words, n-grams, hashes, personal data, reasoning, JSON schemas."""
