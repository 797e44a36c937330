"""The training side of Nexa Distill: a sealed dataset to an evaluated student. Needs torch."""
