"""Inside `easydistill`: job files, teacher labels, logits files."""
