"""From training rows to tensors."""
