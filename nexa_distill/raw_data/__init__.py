"""Inside `canonicalize`: the rows of raw files and folders, and which columns contain prompts."""
