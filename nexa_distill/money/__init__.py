"""What answers cost: the estimate before, the budget meanwhile, the report afterwards."""
