"""Dialects of hosted model APIs."""
