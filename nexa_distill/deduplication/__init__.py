"""Inside `dedup`: near-duplicates, contamination, and the split of each row."""
