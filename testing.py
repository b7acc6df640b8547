"""Tests for plug-in authors: see `flowdiff.core.testing`."""

from __future__ import annotations

from .core.testing import BoundLaw, Checked, Finding, LawBroken, check, laws_of, verify_kernel

__all__ = ["BoundLaw", "Checked", "Finding", "LawBroken", "check", "laws_of", "verify_kernel"]
