"""Reading the text that models write."""
