"""Measurement processes: deterministic maps and noise models."""
