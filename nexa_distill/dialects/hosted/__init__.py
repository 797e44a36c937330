"""Dialects of providers that serve models to their customers."""
