r"""The posterior of a Gaussian prior: Wiener restoration, and the centring of flows.

For y = A_ω(x) + n with affine A and n ~ N(0, σ² I), the posterior under N(μ, S) is N(m(y), P),

.. math:: P = (S^{-1} + A^T A / σ^2)^{-1}, \qquad m(y) = μ + P A^T (y - A_ω(μ)) / σ^2

`Wiener` gives it as an invertible affine map x = m(y) + L u with L Lᵀ = P, so that u ~ N(0, I) is
a posterior sample, and so that a flow may act on u ("Wiener-centring"). It is exact for small
images, with one matrix for all samples or one per sample. Above `DENSE_LIMIT` dimensions, AᵀA is
replaced by its diagonal in the DCT basis: exact for noise and for reflecting symmetric blurs, else
an approximation that is still a legal centring. Of a noise that depends on x, the variance at μ
counts. Without a linear operator it is N(μ, S) itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gaussian import Gaussian
from .observation import Observation, Params
from .operator import ForwardOperator
from .random import randn, random_rows

__all__ = [
    "AffineMap",
    "Wiener",
    "dense_matrix",
    "each_entry",
    "flatten_real",
    "observed_precision",
    "reduced_chi_square",
    "spectral_power",
    "whitened_squares",
]

_CHUNK = 2**22
"""Bytes that `dense_matrix` takes for the columns in work: 4 MiB, what a cache holds."""


@dataclass(frozen=True)
class AffineMap:
    """x = mean + L u for a batch of B observations.

    Attributes:
        mean: with shape (B, C, *spatial).
        factor: L; (d, d) or (B, d, d), or the diagonal (d,) in the Gaussian's basis, or a scalar.
        log_det: log|det L|, a scalar or of shape (B,).
        gaussian: gives the basis of a diagonal factor.
    """

    mean: Tensor
    factor: Tensor
    log_det: Tensor
    gaussian: Gaussian

    def __call__(self, u: Tensor) -> Tensor:
        """mean + L u, for u of shape (…, B, C, *spatial)."""
        if self.factor.ndim == 0:
            return self.mean + self.factor * u
        if self.factor.ndim == 1:
            scaled = self.gaussian.synthesise(self.factor * self.gaussian.analyse(u))
            return self.mean + scaled
        return self.mean + _matmul(self.factor, u, self.mean.ndim - 1)

    def inverse(self, x: Tensor) -> Tensor:
        """L⁻¹(x − mean), for x of shape (…, B, C, *spatial)."""
        centred = x - self.mean
        if self.factor.ndim == 0:
            return centred / self.factor
        if self.factor.ndim == 1:
            return self.gaussian.synthesise(self.gaussian.analyse(centred) / self.factor)
        return _matmul(torch.linalg.inv(self.factor), centred, self.mean.ndim - 1)

    def transposed(self, v: Tensor) -> Tensor:
        """Lᵀ v, for v of shape (…, B, C, *spatial)."""
        if self.factor.ndim == 0:
            return self.factor * v
        if self.factor.ndim == 1:
            # Diagonal in an orthonormal basis, so symmetric.
            return self.gaussian.synthesise(self.factor * self.gaussian.analyse(v))
        return _matmul(self.factor.mT, v, self.mean.ndim - 1)

    def variances(self) -> Tensor:
        """Of the entries of x, the diagonal of L Lᵀ, with a shape that broadcasts with `mean`."""
        if self.factor.ndim == 0:
            return self.factor.square()
        if self.factor.ndim == 1:
            return self.gaussian.pixel_variances(self.factor.square())
        diagonal = self.factor.square().sum(-1)
        return diagonal.reshape(*diagonal.shape[:-1], *self.mean.shape[1:]).to(self.mean.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Posterior samples of the Gaussian prior, with shape (n, B, C, *spatial)."""
        return self(randn((n, *self.mean.shape), generator, self.mean.device, self.mean.dtype))


class Wiener(nn.Module):
    """The posterior map of a Gaussian prior under an operator.

    Args:
        gaussian: the prior N(μ, S).
        operator: the forward operator.
    """

    gain: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(self, gaussian: Gaussian, operator: ForwardOperator) -> None:
        super().__init__()
        self.gaussian = gaussian
        # The operator is an argument of a part, not a part: it must not enter the state.
        self._operator = [operator]
        self._last: tuple[list[Tensor], list[int], tuple[Tensor, Tensor, Tensor]] | None = None
        space = gaussian.space
        self.shared = not operator.draw_params((1, *space.shape), torch.Generator())
        self.matrices = gaussian.dense and self.shared
        if self.matrices:
            self.register_buffer("gain", torch.zeros(space.dimension, _outputs(operator)))
            self.register_buffer("shift", torch.zeros(space.shape))
            self.register_buffer("factor", torch.eye(space.dimension))
        elif not gaussian.dense:
            self.register_buffer("factor", torch.ones(space.dimension))
            self.register_buffer("power", torch.zeros(space.dimension))

    @property
    def operator(self) -> ForwardOperator:
        """The forward operator."""
        return self._operator[0]

    @torch.no_grad()
    def update(self, params: Params) -> None:
        """Recomputes what is shared by all samples, after the Gaussian has changed.

        Args:
            params: operator parameters of some samples, to average the power of A over.
        """
        if self.matrices:
            factor, gain = self._solve()
            self.gain.copy_(gain[0])
            self.factor.copy_(factor[0])
            zero = torch.zeros(
                1, *self.operator.codomain.shape, dtype=self.operator.codomain.dtype
            )
            self.shift.copy_(self._mean(zero.to(gain.device), {}, gain)[0])
        elif not self.gaussian.dense:
            s = self.gaussian.variances
            if self.operator.linear:
                power = spectral_power(self.gaussian, self.operator, params)
                self.get_buffer("power").copy_(power)
                s = s / (1 + s * power / self._noise_variance(params).mean())
            self.factor.copy_(s.sqrt())

    def forward(self, observation: Observation) -> AffineMap:
        """The posterior map of a batch of observations."""
        y = observation.y
        if self.matrices:
            flat = flatten_real(y).to(self.gain.dtype)
            mean = self.shift + (flat @ self.gain.T).reshape(-1, *self.gaussian.space.shape)
            return AffineMap(
                mean, self.factor, torch.linalg.slogdet(self.factor)[1], self.gaussian
            )
        if self.gaussian.dense:
            factor, log_det, gain = self._solve_each(len(observation), observation.params)
            mean = self._mean(y, observation.params, gain)
            return AffineMap(mean, factor, log_det, self.gaussian)
        mean = self.gaussian.mean.expand(len(observation), *self.gaussian.space.shape)
        if self.operator.linear:
            residual = y - self.operator(mean, observation.params)
            back = self.operator.adjoint(residual, observation.params)
            s, noise = self.gaussian.variances, self._noise_variance(observation.params)
            gain = s / (s * self.get_buffer("power") + noise[:, None])
            mean = mean + self.gaussian.synthesise(gain * self.gaussian.analyse(back))
        return AffineMap(mean, self.factor, self.factor.log().sum(), self.gaussian)

    def _noise_variance(self, params: Params) -> Tensor:
        """Mean variance of the noise at the mean image, of each sample (B,) or of all (1,)."""
        batch = next((len(v) for v in params.values()), 1)
        mean = self.gaussian.mean.expand(batch, *self.gaussian.space.shape)
        return self.operator.noise_variance(mean, params).flatten(1).mean(1)

    def _mean(self, y: Tensor, params: Params, gain: Tensor) -> Tensor:
        start = self.gaussian.mean.expand(y.shape[0], *self.gaussian.space.shape)
        if not self.operator.linear:
            return start
        residual = flatten_real(y - self.operator(start, params)).to(gain.dtype)
        observed = self.operator.observed(params)
        if observed is not None:
            residual = residual * each_entry(observed, len(y), self.operator).to(residual.dtype)
        return start + (gain @ residual[..., None])[..., 0].reshape(start.shape).to(start.dtype)

    def _solve_each(self, batch: int, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        """L (B, d, d), log|det L| (B,) and gain (B, d, m) of operators that differ by sample.

        A training step asks twice for one batch, to draw and for the density of the draws. So the
        last answer is kept, for as long as the very same tensors come, unchanged.
        """
        g = self.gaussian
        assert g.basis is not None
        given = [*params.values(), g.mean, g.variances, g.basis]
        if self._last is not None:
            tensors, versions, answer = self._last
            if (
                len(tensors) == len(given)
                and all(a is b for a, b in zip(tensors, given, strict=True))
                and versions == [t._version for t in given]  # noqa: SLF001 (no other way)
            ):
                return answer
        answer = self._each(batch, params)
        self._last = (given, [t._version for t in given], answer)  # noqa: SLF001
        return answer

    @torch.no_grad()
    def _each(self, batch: int, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.gaussian.mean.expand(batch, *self.gaussian.space.shape)
        s, u = self.gaussian.variances.double(), self.gaussian.basis
        assert u is not None
        root = (u.double() * s.sqrt()) @ u.double().T
        if not self.operator.linear:
            nothing = u.new_zeros(batch, len(s), _outputs(self.operator))
            log_det = (0.5 * s.log().sum()).to(u.dtype).expand(batch)
            return root.to(u.dtype).expand(batch, -1, -1), log_det, nothing
        matrix, weight = self._weighted(batch, params, mean, u.device)
        # With S½ symmetric and M = I + S½AᵀWA S½: L = S½ M⁻½ looks like an image on both sides,
        # as a convolutional flow needs it, for one eigendecomposition a sample.
        seen = matrix @ root
        values, vectors = torch.linalg.eigh(seen.mT @ (seen * weight[..., None]))
        values = 1 + values.clamp_min(0)
        factor = root @ ((vectors * values.rsqrt()[:, None, :]) @ vectors.mT)
        gain = factor @ (factor.mT @ (matrix * weight[..., None]).mT)
        log_det = 0.5 * (s.log().sum() - values.log().sum(-1))
        return factor.to(u.dtype), log_det.to(u.dtype), gain.to(u.dtype)

    def _weighted(
        self, batch: int, params: Params, mean: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """A (B, m, d) and the precisions of the observed entries (B, m), float64."""
        matrix = dense_matrix(self.operator, batch, params, device)
        variance = self.operator.noise_variance(mean, params)
        return matrix, observed_precision(self.operator, batch, params, variance)

    def _solve(self) -> tuple[Tensor, Tensor]:
        """L (1, d, d) and gain P Aᵀ/σ² (1, d, m) of one matrix for all, computed in float64."""
        mean = self.gaussian.mean[None]
        s, u = self.gaussian.variances.double(), self.gaussian.basis
        assert u is not None
        basis = u.double()
        if not self.operator.linear:
            root = (basis * s.sqrt()) @ basis.T
            return root[None].to(u.dtype), u.new_zeros(1, len(s), _outputs(self.operator))
        matrix, weight = self._weighted(1, {}, mean, u.device)
        weighted = matrix * weight[..., None]
        # In the basis of S, whitened: P = U s½ (I + s½ UᵀAᵀA U s½/σ²)⁻¹ s½ Uᵀ is well conditioned.
        root = s.sqrt()
        inner = (matrix @ basis) * root
        system = inner.mT @ ((weighted @ basis) * root)
        values, vectors = torch.linalg.eigh(0.5 * (system + system.mT))
        half = basis @ (root[:, None] * vectors)
        covariance = (half / (1 + values.clamp_min(0))[:, None, :]) @ half.mT
        p_values, p_vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
        p_values = p_values.clamp_min(p_values.amax(-1, keepdim=True) * 1e-10)
        # The symmetric root keeps u looking like an image, which a convolutional flow needs.
        factor = (p_vectors * p_values.sqrt()[:, None, :]) @ p_vectors.mT
        gain = covariance @ weighted.mT
        return factor.to(u.dtype), gain.to(u.dtype)


def dense_matrix(
    operator: ForwardOperator, batch: int, params: Params, device: torch.device
) -> Tensor:
    """The linear part of A_ω as real matrices of shape (B, m, d), float64.

    A complex measurement counts as its real and imaginary parts, one after the other. Columns are
    computed many at a time, with a bounded memory.
    """
    space = operator.space
    zero = torch.zeros(batch, *space.shape, device=device)
    offset = flatten_real(operator(zero, params))
    copied = sum(v.numel() * v.element_size() for v in params.values())
    # An input, an output and as much in between, in float32, and the copies of ω. Where ω is the
    # larger part (a matrix for each sample), copies cost more than calls.
    values = 16 * batch * (space.dimension + offset.shape[1])
    count = 1 if copied > values else max(1, _CHUNK // (values + copied))
    columns = []
    for units in torch.eye(space.dimension, device=device).split(count):
        images = units[:, None].expand(-1, batch, -1).reshape(-1, *space.shape)
        # Column by column, as the images are.
        own = params
        if len(units) > 1:
            own = {k: v.repeat(len(units), *[1] * (v.ndim - 1)) for k, v in params.items()}
        found = flatten_real(operator(images, own)).reshape(len(units), *offset.shape) - offset
        columns.append(found)
    return torch.cat(columns).permute(1, 2, 0).double().contiguous()


def observed_precision(
    operator: ForwardOperator, batch: int, params: Params, variance: Tensor
) -> Tensor:
    """1/variance of each real component of y, 0 where nothing is observed: (B, m), float64.

    Args:
        operator: the operator.
        batch: B.
        params: operator parameters ω of the B samples.
        variance: of the noise, broadcastable to (B, *codomain).
    """
    precision = each_entry(1 / variance.double(), batch, operator)
    observed = operator.observed(params)
    return precision if observed is None else precision * each_entry(observed, batch, operator)


def whitened_squares(observation: Observation, x: Tensor) -> tuple[Tensor, Tensor]:
    """(y − E[y | x])²/Var[y | x] of each real component of y, and which were observed: (B, m).

    Args:
        observation: B measurements.
        x: images, with shape (B, C, *spatial).

    Returns:
        Squares, 0 where nothing was observed, and a boolean mask; float64.
    """
    operator, params = observation.operator, observation.params
    error = flatten_real(observation.y - operator.expected(x, params)).double()
    variance = operator.noise_variance(x, params)
    precision = observed_precision(operator, len(observation), params, variance)
    seen = precision > 0
    return torch.where(seen, error.square() * precision, 0.0), seen


def reduced_chi_square(observation: Observation, x: Tensor) -> Tensor:
    """(y − E[y | x])²/Var[y | x] averaged over what was observed of each of B measurements: (B,).

    Its mean is 1 for exact posterior samples x of the right model.
    """
    squares, seen = whitened_squares(observation, x)
    return (squares.sum(1) / seen.sum(1).clamp_min(1)).to(x.dtype)


def spectral_power(
    gaussian: Gaussian,
    operator: ForwardOperator,
    params: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    probes: int = 64,
) -> Tensor:
    """The diagonal of AᵀA in the Gaussian's basis, averaged over samples, with shape (d,).

    Hutchinson's estimate: diag(M) = E[c ∘ Mc] over random signs c.

    Args:
        gaussian: gives the basis.
        operator: a linear operator.
        params: its parameters for some samples; each probe uses one of them.
        generator: source of the signs.
        probes: how many.
    """
    device = gaussian.mean.device
    if generator is None:
        generator = torch.Generator(device).manual_seed(0)
    own = {}
    for key, value in params.items():
        own[key] = random_rows(value, probes, generator)
    signs = randn((probes, gaussian.space.dimension), generator, device).sign()
    image = gaussian.synthesise(signs)
    zero = operator(torch.zeros_like(image), own)
    back = operator.adjoint(operator(image, own) - zero, own)
    return (gaussian.analyse(back) * signs).mean(0).clamp_min(0.0)


def flatten_real(y: Tensor) -> Tensor:
    """(B, …) to (B, m) with real and imaginary parts one after the other."""
    if y.is_complex():
        return torch.cat([y.real.flatten(1), y.imag.flatten(1)], dim=1)
    return y.flatten(1)


def _outputs(operator: ForwardOperator) -> int:
    """Number of real components of one measurement."""
    codomain = operator.codomain
    return torch.Size(codomain.shape).numel() * (2 if codomain.is_complex else 1)


def each_entry(value: Tensor, batch: int, operator: ForwardOperator) -> Tensor:
    """What is broadcastable to (B, *codomain), for each real component of y: (B, m)."""
    codomain = operator.codomain
    full = torch.broadcast_to(value, (batch, *codomain.shape)).flatten(1)
    return torch.cat([full, full], dim=1) if codomain.is_complex else full


def _matmul(factor: Tensor, u: Tensor, rank: int) -> Tensor:
    shape = u.shape
    flat = u.reshape(*shape[: u.ndim - rank], -1)
    if factor.ndim == 2:
        return (flat @ factor.T.to(flat.dtype)).reshape(shape)
    return (factor.to(flat.dtype) @ flat[..., None])[..., 0].reshape(shape)
