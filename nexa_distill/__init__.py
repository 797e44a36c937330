"""The data side of Nexa Distill: raw text to a sealed training dataset. Imports no torch."""

__version__ = "0.1.0"
