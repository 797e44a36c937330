"""The pages of the inspection room, one module each."""
