"""Amortized posteriors q_φ(x | y), one paper per file."""
