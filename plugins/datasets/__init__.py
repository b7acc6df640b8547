"""Sets of clean images that measurements are simulated from."""
