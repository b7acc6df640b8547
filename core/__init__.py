"""The contracts: what plug-ins build on and the run loop works with.

Plug-ins, bundled or not, import these names and nothing else of core::

    from flowdiff.core import BuildContext, DeterministicMap, PartConfig

Each is loaded at its first use: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC: dict[str, tuple[str, ...]] = {
    "composition": ("ComposedOperator",),
    "dataset": ("Dataset", "DatasetConfig", "Split"),
    "dispatch": ("Dispatcher", "KernelWarning", "call_op", "using"),
    "errors": (
        "DivergenceError",
        "FlowdiffError",
        "PluginError",
        "RunError",
        "UserError",
        "suggest",
    ),
    "exact": ("ExactPosterior", "ExactPrior", "LinearModel", "linear_model"),
    "flow": ("Condition", "ConditionalFlow", "FlowConfig", "standard_normal"),
    "gaussian": ("DENSE_LIMIT", "Gaussian", "SeparableDCT", "dct_matrix"),
    "hookspecs": ("hookimpl",),
    "image_metadata": ("ImageMetadata",),
    "intake": ("as_observation", "as_params"),
    "measured": ("MeasuredConfig", "MeasuredDataset", "MeasuredItem"),
    "radiometry": ("intensity", "needs_intensities"),
    "linearisation": ("jacobian",),
    "method": ("Batch", "Method", "MethodState", "Roles", "RunContext", "select"),
    "metric": ("FeatureMetricConfig", "Metric", "MetricConfig", "MetricValue"),
    "kernel": ("Kernel",),
    "launcher": ("Job", "Launcher", "Outcome", "run_job"),
    "moments": ("fit_gaussian",),
    "network": ("Network", "zeroed"),
    "observation": ("Observation", "Params"),
    "operator": (
        "DeterministicMap",
        "ForwardOperator",
        "NoiseModel",
        "OperatorPart",
        "TensorSpec",
        "sum_observed",
    ),
    "optim": ("OptimConfig", "Trainable", "frozen"),
    "part": ("BuildContext", "Part", "PartConfig"),
    "posterior": ("AmortizedPosterior",),
    "pretrained": ("INCEPTION", "LPIPS", "LPIPS_FILE", "check_weights", "inception"),
    "prior": ("DiffusionPrior", "Prior", "expand", "probability_flow"),
    "random": ("Streams", "derive_seed", "randn", "random_rows", "seeded"),
    "registry": ("Registry", "get_registry"),
    "solver": ("Solver",),
    "source": ("Source", "SourceConfig"),
    "space": ("ImageSpace",),
    "windows": ("Canvas", "Tiling", "Windows"),
    "wiener": (
        "AffineMap",
        "Wiener",
        "dense_matrix",
        "each_entry",
        "flatten_real",
        "observed_precision",
        "reduced_chi_square",
        "spectral_power",
        "whitened_squares",
    ),
}
"""Module of core by the public names that it provides."""

_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

if TYPE_CHECKING:
    from .composition import ComposedOperator as ComposedOperator
    from .dataset import Dataset as Dataset
    from .dataset import DatasetConfig as DatasetConfig
    from .dataset import Split as Split
    from .dispatch import Dispatcher as Dispatcher
    from .dispatch import KernelWarning as KernelWarning
    from .dispatch import call_op as call_op
    from .dispatch import using as using
    from .errors import DivergenceError as DivergenceError
    from .errors import FlowdiffError as FlowdiffError
    from .errors import PluginError as PluginError
    from .errors import RunError as RunError
    from .errors import UserError as UserError
    from .errors import suggest as suggest
    from .exact import ExactPosterior as ExactPosterior
    from .exact import ExactPrior as ExactPrior
    from .exact import LinearModel as LinearModel
    from .exact import linear_model as linear_model
    from .flow import Condition as Condition
    from .flow import ConditionalFlow as ConditionalFlow
    from .flow import FlowConfig as FlowConfig
    from .flow import standard_normal as standard_normal
    from .gaussian import DENSE_LIMIT as DENSE_LIMIT
    from .gaussian import Gaussian as Gaussian
    from .gaussian import SeparableDCT as SeparableDCT
    from .gaussian import dct_matrix as dct_matrix
    from .hookspecs import hookimpl as hookimpl
    from .image_metadata import ImageMetadata as ImageMetadata
    from .intake import as_observation as as_observation
    from .intake import as_params as as_params
    from .kernel import Kernel as Kernel
    from .launcher import Job as Job
    from .launcher import Launcher as Launcher
    from .launcher import Outcome as Outcome
    from .launcher import run_job as run_job
    from .linearisation import jacobian as jacobian
    from .measured import MeasuredConfig as MeasuredConfig
    from .measured import MeasuredDataset as MeasuredDataset
    from .measured import MeasuredItem as MeasuredItem
    from .method import Batch as Batch
    from .method import Method as Method
    from .method import MethodState as MethodState
    from .method import Roles as Roles
    from .method import RunContext as RunContext
    from .method import select as select
    from .metric import FeatureMetricConfig as FeatureMetricConfig
    from .metric import Metric as Metric
    from .metric import MetricConfig as MetricConfig
    from .metric import MetricValue as MetricValue
    from .moments import fit_gaussian as fit_gaussian
    from .network import Network as Network
    from .network import zeroed as zeroed
    from .observation import Observation as Observation
    from .observation import Params as Params
    from .operator import DeterministicMap as DeterministicMap
    from .operator import ForwardOperator as ForwardOperator
    from .operator import NoiseModel as NoiseModel
    from .operator import OperatorPart as OperatorPart
    from .operator import TensorSpec as TensorSpec
    from .operator import sum_observed as sum_observed
    from .optim import OptimConfig as OptimConfig
    from .optim import Trainable as Trainable
    from .optim import frozen as frozen
    from .part import BuildContext as BuildContext
    from .part import Part as Part
    from .part import PartConfig as PartConfig
    from .posterior import AmortizedPosterior as AmortizedPosterior
    from .pretrained import INCEPTION as INCEPTION
    from .pretrained import LPIPS as LPIPS
    from .pretrained import LPIPS_FILE as LPIPS_FILE
    from .pretrained import check_weights as check_weights
    from .pretrained import inception as inception
    from .prior import DiffusionPrior as DiffusionPrior
    from .prior import Prior as Prior
    from .prior import expand as expand
    from .prior import probability_flow as probability_flow
    from .radiometry import intensity as intensity
    from .radiometry import needs_intensities as needs_intensities
    from .random import Streams as Streams
    from .random import derive_seed as derive_seed
    from .random import randn as randn
    from .random import random_rows as random_rows
    from .random import seeded as seeded
    from .registry import Registry as Registry
    from .registry import get_registry as get_registry
    from .solver import Solver as Solver
    from .source import Source as Source
    from .source import SourceConfig as SourceConfig
    from .space import ImageSpace as ImageSpace
    from .wiener import AffineMap as AffineMap
    from .wiener import Wiener as Wiener
    from .wiener import dense_matrix as dense_matrix
    from .wiener import each_entry as each_entry
    from .wiener import flatten_real as flatten_real
    from .wiener import observed_precision as observed_precision
    from .wiener import reduced_chi_square as reduced_chi_square
    from .wiener import spectral_power as spectral_power
    from .wiener import whitened_squares as whitened_squares
    from .windows import Canvas as Canvas
    from .windows import Tiling as Tiling
    from .windows import Windows as Windows
else:

    def __getattr__(name: str) -> Any:
        """Loads a public name at its first use (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value


__all__ = sorted(_MODULE_OF)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
