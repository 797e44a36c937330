"""Inside `dedup`: near-duplicates, contamination, and which split a row gets."""
