"""The run folder: which file is where, who may write, and what a run was made with."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .config import RunConfig, read_config, to_yaml
from .errors import UserError
from .files import locked, write_text

__all__ = ["RunFolder"]


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.measurements_file = path / "measurements.safetensors"
        self.initial_file = path / "initial.safetensors"
        self.examples_file = path / "clean_images.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.calibration_file = path / "calibration.json"
        self.report_file = path / "report.html"
        self.overview_file = path / "overview.png"
        self.figures_file = path / "figures.safetensors"
        self.checkpoints = path / "checkpoints"
        self.controls = path / "controls"
        self.controls_file = path / "controls.json"

    @staticmethod
    def check_new(path: Path) -> None:
        """Refuses a place where a new run would overwrite something.

        Raises:
            UserError: a file, or a folder with anything in it but the leftovers of a kill.
        """
        try:
            is_folder, exists = path.is_dir(), path.exists()
            contents = [p for p in path.iterdir() if p.suffix != ".tmp"] if is_folder else []
        except (OSError, ValueError) as error:
            raise UserError(
                f"--out {path}: {getattr(error, 'strerror', None) or error}"
            ) from error
        if exists and not is_folder:
            raise UserError(f"--out {path}: a file of that name exists")
        if contents:
            hint = "continue it with --resume, or " if (path / "config.yaml").exists() else ""
            raise UserError(f"--out {path}: the folder is not empty; {hint}choose another")

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunFolder:
        """A new run folder. Its configuration is the first file in it, so it can be resumed.

        Raises:
            UserError: the folder is not empty, or may not be written.
        """
        cls.check_new(path)
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {path}: cannot create it ({error.strerror})") from error
        write_text(folder.config_file, to_yaml(config))
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            UserError: it is not one.
        """
        folder = cls(path)
        if not path.is_dir():
            raise UserError(f"no run folder {path}")
        if not folder.config_file.is_file():
            raise UserError(f"{path} is no run folder: it has no config.yaml")
        return folder

    def plugins(self) -> dict[str, str]:
        """Versions of the packages whose parts the run used, by name; empty before it began."""
        try:
            content = json.loads(self.environment_file.read_text(encoding="utf-8"))
            return {str(name): str(version) for name, version in content["plugins"].items()}
        except (OSError, ValueError, KeyError, AttributeError):
            # Damaged or absent: it is written for people, and nothing else depends on it.
            return {}

    def config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            UserError: damaged or of another schema.
        """
        content = read_config(self.config_file)
        try:
            return RunConfig(**content)
        except ValueError as error:
            raise UserError(
                f"{self.config_file} is damaged: {str(error).splitlines()[0]}"
            ) from error

    def summary(self) -> dict[str, Any]:
        """summary.json.

        Raises:
            UserError: the run has not finished, or the file is damaged.
        """
        try:
            content: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} has no summary yet; finish it with flowdiff run --resume {self.path}"
            ) from error
        except ValueError as error:
            raise UserError(f"{self.summary_file} is damaged: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != 1:
            raise UserError(
                f"{self.summary_file} is damaged, or of another schema than 1; delete "
                f"it and evaluate again with flowdiff run --resume {self.path}"
            )
        return content

    def calibration(self) -> dict[str, Any] | None:
        """calibration.json; None where the run was not evaluated.

        Raises:
            UserError: the file is damaged.
        """
        advice = f"delete it, or write it anew with flowdiff eval {self.path}"
        try:
            content = json.loads(self.calibration_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.calibration_file} is damaged ({error}); {advice}") from error
        wanted = {"sources", "measurement_space", "models"}
        if (
            not isinstance(content, dict)
            or content.get("schema") != 1
            or not wanted <= set(content)
        ):
            raise UserError(
                f"{self.calibration_file} is damaged, or of another schema than 1; {advice}"
            )
        found: dict[str, Any] = content
        return found

    def metrics(self) -> list[dict[str, float]]:
        """The whole lines of metrics.jsonl; a line that a kill cut short is left out."""
        records = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    break
                if not isinstance(record, dict) or "step" not in record:
                    break
                records.append(record)
        return records

    def truncate_metrics(self, step: int) -> None:
        """Forgets what was logged after a step, so that a resumed run logs it anew."""
        kept = [r for r in self.metrics() if r["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from writing to the run; the lock dies with its process.

        Raises:
            InUseError: another process holds it.
        """
        with locked(self.path):
            yield


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("flowdiff", "torch", "numpy", "scikit-image", "scikit-learn", "deepinv"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment(config: RunConfig, plugins: dict[str, str]) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        config: the resolved configuration.
        plugins: versions of the packages whose parts are used, by distribution.
    """
    return {
        "schema": 1,
        "versions": versions(),
        "plugins": plugins,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "device": config.device,
        "threads": config.threads,
        "seed": config.seed,
        "command": sys.argv,
    }
