"""Ways to learn from measurements, one paper per file."""
