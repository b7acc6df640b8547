"""``flowdiff plugins new``: a complete small package to begin a plug-in with."""

from __future__ import annotations

from .new import KINDS_WITH_TEMPLATES, create

__all__ = ["KINDS_WITH_TEMPLATES", "create"]
