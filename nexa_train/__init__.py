"""The student's side of the house: local models, training, generation, evaluation. Needs torch."""
