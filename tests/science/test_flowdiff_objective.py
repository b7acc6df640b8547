"""FlowDiff's objective: −log p(y) to the last constant where prior and posterior are exact.

With p(x) = N(μ, S), F = 0, and the flow at the exact posterior, −log p(y|x) + b(x) + log q(x|y) is
−log p(y) for *every* x: no term may be off by anything, and there is no variance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowdiff.core import (
    Batch,
    BuildContext,
    ComposedOperator,
    Gaussian,
    ImageSpace,
    RunContext,
    Streams,
)
from flowdiff.plugins.methods.flowdiff import FlowDiff
from flowdiff.plugins.networks.unet import UNet
from flowdiff.plugins.priors.edm import EDMPrior

from .problems import F64, blur, by_columns, chain, glow, normal, perturb, seeded, some_gaussian

SIGMA = 0.2


class Problem:
    """A linear-Gaussian problem on 4×4 pixels, all in float64."""

    def __init__(self, n: int = 8, seed: int = 0, **settings: Any) -> None:
        self.space = ImageSpace((1, 4, 4))
        self.operator: ComposedOperator = chain(self.space, blur(self.space), sigma=SIGMA)
        self.gaussian = some_gaussian(self.space)
        x = self.gaussian.sample(n, seeded(1))
        self.observation = self.operator.observe(x, seeded(2))

        def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> UNet:
            config = UNet.Config(channels=4, embedding=8, multipliers=(1,), dropout=0.0)
            return UNet(config, context, **sizes)

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            place = BuildContext(self.space, self.operator, factory=factory)
            prior = EDMPrior(EDMPrior.Config(), place).double().eval()
        posterior = glow(self.space, self.operator, (2,), (6,), seed=seed).double().eval()
        self.method = FlowDiff(
            FlowDiff.Config(**{"prior_batch": 16, "rehearsal": 0.0, **settings})
        )
        self.context = RunContext(
            space=self.space,
            operator=self.operator,
            observations=self.observation,
            moments=self.gaussian,
            streams=Streams(seed),
            total_steps=100,
            device=torch.device("cpu"),
            build=place,
            prior=prior,
            posterior=posterior,
        )
        self.method.setup(self.context)
        self.prior, self.posterior = prior, posterior
        self.batch = Batch(self.observation, torch.arange(n))

    def nll(self) -> Tensor:
        """−log p(y) in closed form, (B,)."""
        A = by_columns(lambda x: self.operator(x, {}), self.space)
        S, mean = self.gaussian.covariance(), self.gaussian.mean.flatten()
        marginal = MultivariateNormal(A @ mean, A @ S @ A.mT + SIGMA**2 * torch.eye(16, dtype=F64))
        return -marginal.log_prob(self.observation.y.flatten(1))

    def step(self) -> dict[str, float]:
        return self.method.step(self.batch, self.context)


class Recorder:
    """Stands for a Trainable: keeps loss and gradients, and does not update."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.losses: list[Tensor] = []

    def update(self, loss: Tensor) -> float:
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        self.losses.append(loss.detach())
        self.gradient = {
            n: p.grad.clone() for n, p in self.module.named_parameters() if p.grad is not None
        }
        return 0.0


def record(problem: Problem) -> tuple[Recorder, Recorder]:
    recorders = Recorder(problem.prior), Recorder(problem.posterior)
    trainables: Any = dict(zip(("prior", "posterior"), recorders, strict=True))
    problem.method.trainables = trainables
    return recorders


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def changed(before: list[Tensor], module: torch.nn.Module) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


# ---------------------------------------------------------------------------- the value


@pytest.mark.parametrize("times", [1, 3])
def test_loss_is_minus_log_p_of_y(times: int) -> None:
    """Each measurement, each draw: no variance at all. (The operator's matrix is float32.)"""
    problem = Problem(times=times)
    exact = problem.nll()
    for seed in range(5):
        bound = problem.method.negative_elbo(problem.observation, 2, problem.context, seeded(seed))
        torch.testing.assert_close(bound, exact, rtol=0, atol=1e-4)
    assert problem.step()["loss"] == pytest.approx(float(exact.mean()), abs=1e-4)


def test_each_term_is_in_nats() -> None:
    """Expectations under the exact posterior, in closed form, within Monte-Carlo error."""
    problem = Problem(n=4)
    copies = 2000
    problem.batch = Batch(problem.observation.repeat(copies), torch.arange(4 * copies))
    figures = problem.step()
    A = by_columns(lambda x: problem.operator(x, {}), problem.space)
    S, mean = problem.gaussian.covariance(), problem.gaussian.mean.flatten()
    P = torch.linalg.inv(torch.linalg.inv(S) + A.mT @ A / SIGMA**2)
    m = mean + (problem.observation.y.flatten(1) - A @ mean) @ A @ P.mT / SIGMA**2
    two_pi = torch.log(torch.tensor(2 * torch.pi, dtype=F64))
    entropy = 0.5 * (16 * (two_pi + 1) + torch.logdet(P))
    residual = problem.observation.y.flatten(1) - m @ A.mT
    noise = 16 * (two_pi + 2 * torch.log(torch.tensor(SIGMA, dtype=F64)))
    data = 0.5 * (noise + (residual.square().sum(1) + (A @ P @ A.mT).trace()) / SIGMA**2)
    shift = m - mean
    quadratic = (shift @ torch.linalg.inv(S) * shift).sum(1) + (torch.linalg.inv(S) @ P).trace()
    prior = 0.5 * (16 * two_pi + torch.logdet(S) + quadratic)
    # The sd of each term is below 4 nats: 8,000 draws give .05.
    assert figures["entropy"] == pytest.approx(float(entropy), abs=0.15)
    assert figures["data"] == pytest.approx(float(data.mean()), abs=0.15)
    assert figures["prior"] == pytest.approx(float(prior.mean()), abs=0.15)
    total = figures["data"] + figures["prior"] - figures["entropy"]
    assert figures["loss"] == pytest.approx(total, abs=1e-9)


def test_a_worse_flow_is_worse_by_its_kl() -> None:
    """E negative_elbo = −log p(y) + KL(q ‖ p(x|y)), for a flow that is still affine in z."""
    problem = Problem(n=2)
    g = seeded(3)
    with torch.no_grad():
        for name, p in problem.posterior.named_parameters():
            if "norm." in name or "mix." in name or name.startswith("scale."):
                p.add_(0.08 * torch.randn(p.shape, generator=g, dtype=F64))
    shape = (17, 1, 1, 4, 4)
    units = torch.cat([torch.zeros(1, 16, dtype=F64), torch.eye(16, dtype=F64)]).reshape(shape)
    wiener = problem.posterior.wiener(problem.observation[:1])
    with torch.no_grad():
        x = problem.posterior.transform(problem.observation[:1], units)[0]
        u = wiener.inverse(x).flatten(1)  # the exact posterior is N(0, I) here
    b, B = u[0], (u[1:] - u[0]).mT
    kl = 0.5 * (B.square().sum() + b.square().sum() - 16) - torch.linalg.slogdet(B)[1]
    assert 0.3 < float(kl) < 5
    n = 4000
    found = problem.method.negative_elbo(
        problem.observation[:1].repeat(n), 1, problem.context, seeded(4)
    )
    error = 5 * float(found.std()) / n**0.5
    assert error < 0.25
    assert abs(float(found.mean()) - float(problem.nll()[0] + kl)) < error


def test_any_flow_is_an_upper_bound() -> None:
    problem = Problem(n=4)
    perturb(problem.posterior, 0.4)
    n = 500
    found = problem.method.negative_elbo(
        problem.observation.repeat(n), 1, problem.context, seeded(4)
    ).reshape(n, 4)
    assert (found.mean(0) - 5 * found.std(0) / n**0.5 > problem.nll()).all()
    fewer = problem.method.negative_elbo(problem.observation, 200, problem.context, seeded(5))
    assert fewer.shape == (4,)
    spread = 5 * found.std(0) * (1 / 200 + 1 / n) ** 0.5
    assert ((fewer - found.mean(0)).abs() < spread).all()


# ---------------------------------------------------------------------------- the gradients


def test_exact_posterior_has_no_gradient() -> None:
    """With the path gradient it vanishes draw by draw; without it, on average only."""
    problem = Problem(path_gradient=True)
    _, posterior = record(problem)
    problem.step()
    exact = max(float(g.abs().max()) for g in posterior.gradient.values())
    problem = Problem(path_gradient=False)
    _, posterior = record(problem)
    problem.step()
    noisy = max(float(g.abs().max()) for g in posterior.gradient.values())
    assert exact < 1e-3 < 1e-1 < noisy


def test_gradient_goes_through_the_score_network() -> None:
    """The φ-gradient is that of finite differences of the loss, the network's part included.

    Stopping it at the network would be biased, and is what this test sees.
    """
    problem = Problem(path_gradient=False)
    perturb(problem.posterior, 0.4)
    perturb(problem.prior.network, 1.5)
    prior, posterior = record(problem)
    prior.update = lambda loss: 0.0  # type: ignore[method-assign]

    def loss() -> float:
        problem.context.streams = Streams(0)
        problem.step()
        return float(posterior.losses[-1])

    loss()
    gradient = dict(posterior.gradient)
    parameters = dict(problem.posterior.named_parameters())
    checked = 0
    for name in list(parameters)[::5]:
        p, direction = parameters[name], normal(*parameters[name].shape, seed=4)
        if name.endswith((".lower", ".upper")):
            direction = torch.tril(direction, -1) if "lower" in name else torch.triu(direction, 1)
        step = 1e-5
        p.data.add_(step * direction)
        above = loss()
        p.data.sub_(2 * step * direction)
        below = loss()
        p.data.add_(step * direction)
        slope = (above - below) / (2 * step)
        expected = float((gradient[name] * direction).sum())
        assert expected == pytest.approx(slope, rel=1e-3, abs=1e-5), name
        checked += abs(slope) > 1e-2
    assert checked > 3

    # What would be missing without the network's part is not small.
    network: Any = problem.prior.network
    original: Callable[..., Tensor] = network.forward
    network.forward = lambda x, c: original(x, c).detach()
    loss()
    network.forward = original
    difference = sum(float((posterior.gradient[n] - gradient[n]).square().sum()) for n in gradient)
    total = sum(float(g.square().sum()) for g in gradient.values())
    assert difference > 1e-3 * total


def test_path_gradient_is_unbiased() -> None:
    """The two estimators have the same mean; each parameter tensor, within Monte-Carlo error."""
    gradients: dict[bool, dict[str, Tensor]] = {}
    for path in (True, False):
        problem = Problem(n=4, path_gradient=path, seed=3)
        perturb(problem.posterior, 0.3)
        perturb(problem.prior.network, 0.3)
        problem.batch = Batch(problem.observation.repeat(125), torch.arange(500))
        _, posterior = record(problem)
        rows: dict[str, list[Tensor]] = {}
        for seed in range(12):
            problem.context.streams = Streams(seed)
            problem.step()
            for name, g in posterior.gradient.items():
                rows.setdefault(name, []).append((g * normal(*g.shape, seed=1)).sum())
        gradients[path] = {n: torch.stack(values) for n, values in rows.items()}
    assert gradients[True].keys() == gradients[False].keys()
    for name, one in gradients[True].items():
        other = gradients[False][name]
        # The same seeds give the same draws, so the difference is the score term alone.
        gap = one - other
        assert abs(float(gap.mean())) < 6 * float(gap.std()) / 12**0.5 + 1e-6, name


# ---------------------------------------------------------------------------- who learns from what


def test_phi_step_leaves_the_prior_alone_and_theta_step_the_posterior() -> None:
    problem = Problem()
    perturb(problem.posterior, 0.2)
    perturb(problem.prior.network, 0.2)
    trainables = problem.method.trainables
    before = {"prior": weights(problem.prior), "posterior": weights(problem.posterior)}
    log: list[str] = []
    modules = {"prior": problem.prior, "posterior": problem.posterior}
    for name, trainable in trainables.items():
        original = trainable.update

        def update(loss: Tensor, name: str = name, original: Any = original) -> float:
            log.append(name)
            others = [m for key, m in modules.items() if key != name]
            for module in others:
                module.zero_grad(set_to_none=True)
            untouched = [weights(m) for m in others]
            norm: float = original(loss)
            assert norm > 0
            for module, old in zip(others, untouched, strict=True):
                assert all(p.grad is None for p in module.parameters())
                assert not any(changed(old, module))
            return norm

        trainable.update = update  # type: ignore[method-assign]
    problem.step()
    assert log[0] == "posterior"
    assert set(log[1:]) == {"prior"}
    assert all(changed(before["posterior"], problem.posterior))
    assert sum(changed(before["prior"], problem.prior)) > 0.9 * len(before["prior"])
    assert all(p.requires_grad for m in modules.values() for p in m.parameters())


def test_theta_step_sees_detached_samples_of_the_flow() -> None:
    problem = Problem()
    drawn: list[Tensor] = []
    seen: list[Tensor] = []
    rsample, loss = problem.posterior.rsample, problem.prior.loss

    def spy_rsample(*arguments: Any) -> Any:
        x, log_q = rsample(*arguments)
        drawn.append(x)
        return x, log_q

    def spy_loss(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return loss(x, generator)

    problem.posterior.rsample = spy_rsample  # type: ignore[method-assign]
    problem.prior.loss = spy_loss  # type: ignore[method-assign]
    for step in range(3):
        problem.step()
        problem.context.step = step + 1
    assert all(x.requires_grad for x in drawn)
    assert not any(x.requires_grad for x in seen)
    samples = torch.cat([x.detach().flatten(2)[0] for x in drawn])
    for x in seen:
        distance = torch.cdist(x.flatten(1), samples).amin(1)
        assert float(distance.max()) < 1e-5


def test_rehearsal_simulates_measurements_of_own_samples() -> None:
    """The end of the batch: y = A x + n for samples x of the flow; the data stay as they are."""
    problem = Problem(n=16, rehearsal=0.25)
    problem.step()
    buffer = problem.method._buffer.clone()
    posterior: Any = problem.posterior
    seen: list[Tensor] = []
    rsample = posterior.rsample

    def spy(observation: Any, *arguments: Any) -> Any:
        seen.append(observation.y)
        return rsample(observation, *arguments)

    posterior.rsample = spy
    n = 60
    residuals = []
    for _ in range(n):
        problem.method._buffer = buffer.clone()
        problem.step()
        assert torch.equal(seen[-1][:12], problem.observation.y[:12])
        clean = problem.operator(buffer, {}).flatten(1)
        distance = torch.cdist(seen[-1][12:].flatten(1), clean).argmin(1)
        residuals.append(seen[-1][12:].flatten(1) - clean[distance])
    spread = torch.cat(residuals)
    # The nearest sample is mostly the right one, which makes the residual a little too small.
    assert 0.85 * SIGMA < float(spread.std()) < SIGMA * (1 + 5 / (2 * spread.numel()) ** 0.5)
    # What is remembered, and what is reported, is of the data alone.
    assert len(buffer) == 16
    assert len(problem.method._buffer) == 16 + 12
    figures = problem.step()
    assert figures["loss"] == pytest.approx(
        figures["data"] + figures["prior"] - figures["entropy"], abs=1e-9
    )


def test_prior_weight_grows_linearly() -> None:
    problem = Problem(prior_weight_steps=4, path_gradient=False)
    _, posterior = record(problem)
    for step, weight in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        problem.context.step = step
        problem.context.streams = Streams(0)
        figures = problem.step()
        expected = figures["data"] + weight * (figures["prior"] - figures["entropy"])
        assert float(posterior.losses[-1]) == pytest.approx(expected, abs=1e-9)
        # What is reported is always the whole objective.
        assert figures["loss"] == pytest.approx(
            figures["data"] + figures["prior"] - figures["entropy"], abs=1e-9
        )


def test_training_recovers_a_perturbed_flow() -> None:
    """The bound falls back towards −log p(y) when the flow alone is trained."""
    problem = Problem(n=64, lr_posterior=5e-3, warmup=0)
    perturb(problem.posterior, 0.3)
    problem.method.trainables["prior"].update = lambda loss: 0.0  # type: ignore[method-assign]
    exact = float(problem.nll().mean())

    def gap() -> float:
        bound = problem.method.negative_elbo(problem.observation, 20, problem.context, seeded(7))
        return float(bound.mean()) - exact

    before = gap()
    assert before > 1
    for _ in range(60):
        problem.step()
        problem.context.step += 1
    assert gap() < 0.5 * before
    assert gap() > -0.05


def test_state_continues_bit_equal() -> None:
    """Weights, moments, averages and the buffer of samples; a fresh method takes it over."""
    first = Problem()
    for _ in range(3):
        first.step()
        first.context.step += 1
    state, streams = first.method.state(), first.context.streams.state()
    state.tensors = {k: v.clone() for k, v in state.tensors.items()}
    second = Problem()
    second.method.load_state(state)
    second.context.streams.load_state(streams)
    second.context.step = 3
    for _ in range(3):
        assert first.step() == second.step()
    mine, theirs = first.method.state().tensors, second.method.state().tensors
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_start_of_training_is_the_gaussian_row() -> None:
    """The prior's samples and the flow's begin at the Gaussian and its posterior."""
    problem = Problem()
    x, g = normal(3, 1, 4, 4), problem.gaussian
    torch.testing.assert_close(problem.prior.nll_bound(x, seeded()), -g.log_prob(x))
    assert isinstance(problem.prior.gaussian, Gaussian)
    exact = problem.posterior.wiener(problem.observation)
    draws = problem.method.restore(problem.observation, 3, problem.context, seeded(6))
    # An orthogonal mixing of z: the same distribution, by its density and by its norm.
    u = exact.inverse(draws)
    z = normal(3, 8, 1, 4, 4, seed=6)
    torch.testing.assert_close(
        u.square().flatten(2).sum(2), z.square().flatten(2).sum(2), rtol=1e-5, atol=1e-5
    )
