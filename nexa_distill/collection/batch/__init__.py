"""Batch mode: requests are sent to the provider in files and answered within a day."""
