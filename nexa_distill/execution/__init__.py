"""Running what a model wrote, contained: SQL, Python, final answers of maths, JSON."""
