"""What judges are asked, how their answers are read, and how far they can be trusted."""
