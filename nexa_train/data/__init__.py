"""Tokenizers and what is read through them."""
