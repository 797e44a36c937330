"""From training rows to tensors: chat format, loss mask, packing, batches."""
