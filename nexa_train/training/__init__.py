"""Inside `train_sft`: what a training is made of."""
