"""Places where the cells of a benchmark run."""
