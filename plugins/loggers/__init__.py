"""Loggers: hooks that write what happens in a run. Each is switched on by ``--hooks``."""
