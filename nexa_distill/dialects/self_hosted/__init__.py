"""Dialects of self-hosted servers."""
