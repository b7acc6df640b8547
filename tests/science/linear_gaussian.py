"""Linear-Gaussian learning: everything that a run learns, against exact answers.

x ~ N(μ*, S*), y = A_ω x + σn. The density of measurements is Gaussian for the truth, for the
maximum-likelihood fit and for a learned Gaussian prior, so the Kullback-Leibler divergence from
the truth is exact for each. It is the yardstick: where the operator does not look, covariances
differ wildly and measurements do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    AffineMap,
    Dataset,
    DatasetConfig,
    ForwardOperator,
    Gaussian,
    ImageSpace,
    Observation,
    dense_matrix,
    each_entry,
    flatten_real,
    get_registry,
)
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.loop import batch_index
from flowdiff.core.method import select
from flowdiff.core.random import derive_seed, seeded
from flowdiff.core.session import Session

F64 = torch.float64

OPERATORS = {
    "noise": ("gaussian_noise", {"op.gaussian_noise.sigma": 0.5}),
    "blur": (
        "gaussian_blur+gaussian_noise",
        {"op.gaussian_blur.sigma": 0.8, "op.gaussian_noise.sigma": 0.2},
    ),
    "mask": (
        "random_mask+gaussian_noise",
        {"op.random_mask.keep": 0.6, "op.gaussian_noise.sigma": 0.2},
    ),
}
"""Chain and settings of each problem; `mask` differs from sample to sample."""


@dataclass(frozen=True)
class Normal:
    """N(mean (d,), covariance (d, d)), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def random(cls, d: int, seed: int = 0) -> Normal:
        """A spectrum of 1.3 decades in random directions, with a mean of its own."""
        g = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=F64))[0]
        spectrum = torch.logspace(0, -1.3, d, dtype=F64)
        return cls(0.5 * torch.randn(d, generator=g, dtype=F64), (basis * spectrum) @ basis.mT)

    @classmethod
    def of(cls, gaussian: Gaussian) -> Normal:
        """The same as a pair of a vector and a matrix."""
        return cls(gaussian.mean.double().flatten(), gaussian.covariance().double())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws (n, d)."""
        z = torch.randn(n, len(self.mean), generator=generator, dtype=F64)
        return self.mean + z @ torch.linalg.cholesky(self.covariance).mT


def kl(p: Normal, q: Normal) -> Tensor:
    """KL(p ‖ q) in nats; the fields may have a batch of leading axes."""
    factor = torch.linalg.cholesky(q.covariance)
    shift = torch.linalg.solve_triangular(factor, (q.mean - p.mean)[..., None], upper=False)
    trace = torch.cholesky_solve(p.covariance, factor).diagonal(dim1=-2, dim2=-1).sum(-1)
    log_q = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_p = torch.linalg.slogdet(p.covariance)[1]
    return 0.5 * (trace + shift.square().sum((-2, -1)) - p.mean.shape[-1] + log_q - log_p)


@dataclass(frozen=True)
class Channel:
    """The linear part of the operator for some samples, on observed entries.

    Unobserved entries get a row of zeros and unit noise in *every* model: they add nothing to a
    divergence, and all samples keep one shape.

    Attributes:
        matrix: with shape (B, m, d).
        noise: variances, with shape (B, m).
        observed: mean number of observed entries.
    """

    matrix: Tensor
    noise: Tensor
    observed: float

    @classmethod
    def of(cls, operator: ForwardOperator, params: Any, count: int) -> Channel:
        """Of `count` samples with parameters ω; one stands for all where there are none."""
        batch = count if params else 1
        device = torch.device("cpu")
        matrix = dense_matrix(operator, batch, params, device).double()
        zero = torch.zeros(batch, *operator.space.shape)
        noise = each_entry(operator.noise_variance(zero, params), batch, operator).double()
        seen = operator.observed(params)
        keep = torch.ones_like(noise) if seen is None else each_entry(seen, batch, operator)
        keep = keep.double()
        return cls(
            matrix * keep[..., None],
            torch.where(keep > 0, noise, 1.0),
            float(keep.sum(1).mean()),
        )

    def measured(self, x: Normal) -> Normal:
        """The density of y for each sample."""
        covariance = self.matrix @ x.covariance @ self.matrix.mT + torch.diag_embed(self.noise)
        return Normal(self.matrix @ x.mean, covariance)

    def posterior(self, x: Normal, y: Tensor) -> Normal:
        """The exact posterior of each y (B, m)."""
        own = self.measured(x)
        gain = torch.linalg.solve(own.covariance, self.matrix @ x.covariance).mT
        mean = x.mean + (gain @ (y - own.mean)[..., None])[..., 0]
        covariance = x.covariance - gain @ self.matrix @ x.covariance
        return Normal(mean, 0.5 * (covariance + covariance.mT))


def maximum_likelihood(
    channel: Channel, y: Tensor, start: Normal, iterations: int = 150
) -> Normal:
    """The fit that maximises the likelihood of measurements y (N, m), by L-BFGS from `start`.

    Started at the truth, which is within O(N^-½) of it: only the yardstick needs it.
    """
    factor = torch.linalg.cholesky(start.covariance)
    d = len(start.mean)
    theta = torch.zeros(d + d * d, dtype=F64, requires_grad=True)

    def build() -> Normal:
        triangle = theta[d:].reshape(d, d)
        own = factor @ (triangle.tril(-1) + torch.diag(triangle.diagonal().exp()))
        return Normal(start.mean + factor @ theta[:d], own @ own.mT)

    shared = len(channel.matrix) == 1
    if shared:
        average = y.mean(0)
        spread = (y - average).mT @ (y - average) / len(y)

    def nll() -> Tensor:
        own = channel.measured(build())
        lower = torch.linalg.cholesky(own.covariance)
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if shared:
            shift = average - own.mean[0]
            second = spread + torch.outer(shift, shift)
            trace = torch.cholesky_solve(second[None], lower).diagonal(dim1=-2, dim2=-1).sum(-1)
            return 0.5 * (log_det + trace).mean()
        shift = torch.linalg.solve_triangular(lower, (y - own.mean)[..., None], upper=False)
        return 0.5 * (log_det + shift.square().sum((-2, -1))).mean()

    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = nll()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return build()


@dataclass
class Result:
    """Figures of one run, in nats per dimension where they are divergences.

    Attributes:
        learned: KL from the true density of measurements to that of the learned prior.
        fit: the same for the maximum-likelihood fit.
        start: the same for the Gaussian that training started from.
        covariance: relative error of the covariance on the identified subspace.
        covariance_fit: the same of the maximum-likelihood fit.
        posterior: mean KL from the exact posterior (of the truth) to q, held-out measurements.
        posterior_fit: the same for the exact posterior of the maximum-likelihood fit.
        amortization: mean KL from q to the exact posterior of the learned prior.
    """

    learned: float
    fit: float
    start: float
    covariance: float
    covariance_fit: float
    posterior: float
    posterior_fit: float
    amortization: float


def session_for(
    problem: str,
    shape: tuple[int, ...],
    count: int,
    truth: Normal,
    settings: dict[str, Any],
    prior: str = "gaussian",
    posterior: str = "affine",
    isotropic: bool = True,
    method: str = "flowdiff",
) -> Session:
    """A session on `count` measurements of images drawn from the truth.

    Args:
        problem: a key of `OPERATORS`.
        shape: of the images.
        count: number of training measurements.
        truth: the density of images.
        settings: as ``--set`` takes them.
        prior: name of the prior.
        posterior: name of the posterior.
        isotropic: start from a Gaussian of the right level and variance that knows no direction,
            and not from the fit, which is nearly the answer here.
        method: name of the method.
    """

    class Truth(Dataset):
        """Draws of the truth."""

        Config = DatasetConfig

        @property
        def space(self) -> ImageSpace:
            return ImageSpace(shape)

        def load(self) -> tuple[Tensor, Tensor]:
            x = truth.sample(2 * count, torch.Generator().manual_seed(1)).float()
            return x.reshape(-1, *shape), torch.arange(2 * count)

    get_registry().register("dataset", "linear_gaussian", Truth)
    op, own = OPERATORS[problem]
    request = Request(
        method=method,
        prior=prior,
        posterior=posterior,
        op=op,
        data="linear_gaussian",
        settings=settings_of({**own, **settings}),
    )
    session = Session.build(resolve(request, get_registry()), get_registry())
    if isotropic:
        ctx = session.context
        level = ctx.moments.variances.mean().expand_as(ctx.moments.variances)
        flat = ctx.moments.mean.mean().expand_as(ctx.moments.mean)
        ctx.moments.assign(flat.clone(), level.clone(), ctx.moments.basis)
        session.method.setup(ctx)
    return session


def train(session: Session) -> dict[str, float]:
    """All steps of the session; the figures of the last one."""
    ctx, size = session.context, session.config.train.batch_size
    figures: dict[str, float] = {}
    while ctx.step < ctx.total_steps:
        index = batch_index(ctx.step, size, len(ctx.observations), ctx.streams)
        with seeded(derive_seed(session.config.seed, f"global.{ctx.step}")):
            figures = session.method.step(select(ctx.observations, index, ctx.clean), ctx)
        ctx.step += 1
    return figures


def learned_prior(session: Session, draws: int = 100_000) -> Normal:
    """The prior as a Gaussian: exactly where it is one, else by the moments of its samples."""
    prior: Any = session.context.prior
    with session.method.serving(), torch.no_grad():
        if hasattr(prior, "fitted"):
            return Normal.of(prior.fitted())
        generator = torch.Generator().manual_seed(2)
        chunks = [prior("sample", 2000, generator, None).flatten(1) for _ in range(draws // 2000)]
        x = torch.cat(chunks).double()
        mean = x.mean(0)
        return Normal(mean, (x - mean).mT @ (x - mean) / len(x))


def judge(session: Session, truth: Normal) -> Result:
    """Compares what a session has learned with the truth and with the maximum-likelihood fit."""
    ctx = session.context
    d = ctx.space.dimension
    operator, seen = ctx.operator, ctx.observations
    channel = Channel.of(operator, seen.params, len(seen))
    zero = torch.zeros(1, *ctx.space.shape)
    shift = flatten_real(operator(zero.expand(len(channel.matrix), *ctx.space.shape), seen.params))
    fit = maximum_likelihood(channel, flatten_real(seen.y).double() - shift.double(), truth)
    prior = learned_prior(session)
    held: Observation = session.measurements.heldout[:200]
    test = Channel.of(operator, held.params, len(held))
    y = flatten_real(held.y).double()

    def of_measurements(x: Normal) -> float:
        return float(kl(test.measured(truth), test.measured(x)).mean()) / test.observed

    with session.method.serving(), torch.no_grad():
        q = _posterior(session, held)
    exact, of_fit, of_prior = (test.posterior(x, y) for x in (truth, fit, prior))
    return Result(
        learned=of_measurements(prior),
        fit=of_measurements(fit),
        start=of_measurements(Normal.of(ctx.moments)),
        covariance=_identified_error(channel, truth, prior),
        covariance_fit=_identified_error(channel, truth, fit),
        posterior=math.nan if q is None else float(kl(exact, q).mean()) / d,
        posterior_fit=float(kl(exact, of_fit).mean()) / d,
        amortization=math.nan if q is None else float(kl(q, of_prior).mean()) / d,
    )


def _posterior(session: Session, held: Observation) -> Normal | None:
    posterior: Any = session.context.posterior
    if hasattr(posterior, "posterior"):
        own: AffineMap = posterior.posterior(held)
        factor = own.factor.double()
        return Normal(own.mean.double().flatten(1), factor @ factor.mT)
    n = 2000
    x = posterior.sample(held, n, torch.Generator().manual_seed(3)).double().flatten(2)
    mean = x.mean(0)
    centred = (x - mean).movedim(0, 1)
    return Normal(mean, centred.mT @ centred / n)


def _identified_error(channel: Channel, truth: Normal, x: Normal) -> float:
    """‖P(S − S*)P‖/‖P S* P‖ over the directions that are seen at least as well as noise.

    P projects on the eigenvectors of the mean Fisher information S*^½ E[AᵀA/σ²] S*^½ above 1.
    """
    information = (channel.matrix.mT / channel.noise[:, None, :] @ channel.matrix).mean(0)
    values, vectors = torch.linalg.eigh(truth.covariance)
    root = (vectors * values.sqrt()) @ vectors.mT
    power, directions = torch.linalg.eigh(root @ information @ root)
    seen = torch.linalg.qr(root @ directions[:, power > 1])[0]
    difference = seen.mT @ (x.covariance - truth.covariance) @ seen
    return float(difference.norm() / (seen.mT @ truth.covariance @ seen).norm())
