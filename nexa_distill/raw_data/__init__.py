"""Inside `canonicalize`: the rows of raw files and folders, and which columns hold prompts."""
