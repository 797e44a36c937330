"""Dialects of servers that people run themselves."""
