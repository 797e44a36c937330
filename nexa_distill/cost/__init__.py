"""What answers cost: the estimate before, the report afterwards."""
