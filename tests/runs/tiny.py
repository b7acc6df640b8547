"""A run that takes a few seconds, for the tests of the run loop."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.core.checkpoint import Checkpoint, latest
from flowdiff.core.measurements import content_hash

TINY: Mapping[str, Any] = {
    "train.steps": 12,
    "train.batch_size": 8,
    "train.checkpoint_every": 4,
    "train.log_every": 2,
    # With fewer than 12 the Gaussian fit has nothing to choose by: a second of each run.
    "data.n": 11,
    "prior.patch": 2,
    "prior.channels": 8,
    "prior.embedding": 16,
    "prior.attention": [],
    "posterior.steps": [1, 1],
    "posterior.hidden": [8, 8],
    "posterior.condition": 4,
    "posterior.encoder": 8,
    "eval.n_posterior": 4,
    "eval.max_images": 24,
    "eval.bootstrap": 20,
    "eval.metrics": ["sliced_wasserstein"],
    "eval.sampler_steps": 4,
}

LARGER: Mapping[str, Any] = {**TINY, "data.n": 24}
"""The same with as many measurements as its evaluation takes: three batches."""


def arguments() -> list[str]:
    """The same as options of the command line."""
    words = ["--method", "flowdiff"]
    for key, value in TINY.items():
        text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
        words += ["--set", f"{key}={text}"]
    return words


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of what must not depend on interruptions: final state, random state and metrics."""
    path = latest(run / "checkpoints")
    assert path is not None
    checkpoint = Checkpoint.load(path)
    groups = {"method/": "", "rng/": "", "moments/": ""}
    for prefix in groups:
        tensors = checkpoint.part(prefix)
        assert tensors, f"the checkpoint holds no {prefix}"
        groups[prefix] = content_hash(tensors)
    return {
        **groups,
        "step": str(checkpoint.step),
        "calls": str(checkpoint.calls),
        "metrics": hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest(),
        "measurements": hashlib.sha256(
            (run / "measurements.safetensors").read_bytes()
        ).hexdigest(),
    }
