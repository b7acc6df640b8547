"""Clean priors p_θ(x), one paper per file."""
