"""Controls that are trained after a run, on its measurements, for the rows beside its own."""

from __future__ import annotations

import json
from typing import Any

from .config import RunConfig
from .dataset import Dataset
from .errors import RunError, UserError
from .files import write_json
from .folder import RunFolder
from .registry import Registry

__all__ = [
    "CONTROLS",
    "ask_for_controls",
    "check_controls",
    "control_config",
    "merge_controls",
    "wanted_controls",
]

CONTROLS = {
    "oracle": "oracle: the prior trained on clean images",
    "naive": "naive: the prior trained on measurements as if clean",
}
"""Methods that train the same prior on other images, with the titles of their rows."""


def ask_for_controls(folder: RunFolder) -> None:
    """Notes in the run folder that the controls are wanted, so that a resumed run trains them."""
    write_json(folder.controls_file, list(CONTROLS))


def check_controls(config: RunConfig, registry: Registry) -> None:
    """Refuses controls where there are no clean images to compare them with.

    Raises:
        UserError: so it is.
    """
    if not issubclass(registry.load("dataset", str(config.data["name"])), Dataset):
        raise UserError(
            "--controls: controls are compared with clean images, and data "
            f"{config.data['name']} has none"
        )
    if config.prior is not None and config.prior.get("frozen"):
        raise UserError("--controls: they learn a prior, and this one is given (prior.frozen)")


def wanted_controls(folder: RunFolder) -> list[str]:
    """The controls that were asked for.

    Raises:
        UserError: the note is damaged.
    """
    if not folder.controls_file.exists():
        return []
    try:
        names = json.loads(folder.controls_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder.controls_file} is damaged; delete it") from error
    if not isinstance(names, list) or not set(names) <= set(CONTROLS):
        raise UserError(f"{folder.controls_file} is damaged; delete it")
    return names


def control_config(config: RunConfig, name: str, registry: Registry) -> RunConfig:
    """A run's configuration with another method, which takes over the settings they share.

    It learns from as many measurements, for all of the steps.
    """
    cls: Any = registry.load("method", name)
    shared = {k: v for k, v in config.method.items() if k in cls.Config.model_fields}
    own = cls.Config(**shared).model_dump(mode="json")
    train = config.train.model_copy(update={"patience": 0, "clean_images": 0})
    return config.model_copy(
        update={
            "init": None,
            "method": {"name": name, **own},
            "posterior": None,
            "train": train,
        }
    )


def merge_controls(folder: RunFolder) -> None:
    """Adds the prior row of each finished control to the run's summary.json.

    Raises:
        RunError: a control was trained on other measurements.
    """
    summary = folder.summary()
    rows = [row for row in summary["rows"] if not row.get("control")]
    for name in wanted_controls(folder):
        path = folder.controls / name / "summary.json"
        if not path.exists():
            continue
        control = json.loads(path.read_text(encoding="utf-8"))
        if control["measurements"]["digest"] != summary["measurements"]["digest"]:
            raise RunError(f"control {name} was trained on other measurements")
        learned = next(row for row in control["rows"] if row["name"] == "prior")
        rows.append(
            {
                **learned,
                "name": name,
                "title": CONTROLS[name],
                "control": True,
                "clean_images_used": control["clean_images_used"],
                "seconds": control["cost"]["training_seconds"],
            }
        )
    if rows != summary["rows"]:
        summary["rows"] = rows
        write_json(folder.summary_file, summary)
