"""Inside `train_sft`: the student, its losses, the loop, checkpoints, the export."""
