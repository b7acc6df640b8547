"""The standard suite: what ``flowdiff bench --op mypkg:myop`` compares.

The new operator beside the bundled noise, blur and mask, on digits, by every method that learns
from measurements and by the controls, at an equal and small number of network evaluations.
"""

from __future__ import annotations

from typing import Any

__all__ = ["STANDARD"]

STANDARD: dict[str, Any] = {
    "methods": [
        "amortized_em",
        "flowdiff",
        "em_mmps",
        "ambient_tweedie",
        "ambient_diffusion",
        "sure_score",
        "ambientflow",
        "gaussian_fit",
        "naive",
        "oracle",
    ],
    "operators": [
        {"name": "gaussian_noise", "settings": {"op.gaussian_noise.sigma": 0.5}},
        {
            "name": "gaussian_blur",
            "settings": {"op.gaussian_blur.sigma": 0.8, "op.gaussian_noise.sigma": 0.2},
        },
        {
            "name": "random_mask",
            "settings": {"op.random_mask.keep": 0.6, "op.gaussian_noise.sigma": 0.1},
        },
    ],
    "data": ["digits"],
    "seeds": [0, 1, 2],
    "budget": {"network_calls": 600_000},
}
