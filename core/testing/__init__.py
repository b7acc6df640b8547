"""The laws of the contracts, to be tried on any component.

``flowdiff plugins check`` tries them from the command line. In a test of an author's own::

    import pytest
    from flowdiff.testing import laws_of
    from mypkg.operators import Vignette

    @pytest.mark.parametrize("law", laws_of("operator", Vignette), ids=str)
    def test_contract(law):
        law.verify()

Laws are tried in float64 with tight bounds, on small images, and those about randomness with
thousands of draws from fixed seeds: they come out the same each time.
"""

from __future__ import annotations

from .check import BoundLaw, Checked, check, laws_of, verify_kernel
from .law import Finding, LawBroken

__all__ = ["BoundLaw", "Checked", "Finding", "LawBroken", "check", "laws_of", "verify_kernel"]
