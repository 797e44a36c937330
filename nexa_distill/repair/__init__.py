"""Inside `regenerate_bad`: which answers to ask again, with which instruction, and the outcome."""
