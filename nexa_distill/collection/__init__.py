"""Requests to a model API: the missing answers of a stage, and the probe of its capabilities."""
