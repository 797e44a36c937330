"""Batch mode: requests go to the provider in files, and the answers come within a day."""
