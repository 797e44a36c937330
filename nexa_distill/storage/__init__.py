"""Files on disk: raw rows in every format, and tables that a user hands in."""
