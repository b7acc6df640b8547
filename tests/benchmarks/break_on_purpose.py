"""Breaks the code on purpose, one mistake at a time, and shows which test notices.

    python -m tests.benchmarks.break_on_purpose [--only NAME …]

Each mistake is made in a copy of the checkout, and the named test must fail there (and pass in
the copy as it is). Exit code 1 if one goes unnoticed. About ten seconds a mistake.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mistake:
    """A change of the code, and the test that must fail.

    Attributes:
        name: what is wrong.
        file: where, relative to the checkout.
        old: the text that is replaced, once.
        new: what replaces it.
        test: the test, as pytest names it.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MISTAKES = (
    Mistake(
        "langevin: a drift twice as large",
        "plugins/solvers/langevin.py",
        "u = u + 0.5 * step * affine.transposed(slope)",
        "u = u + step * affine.transposed(slope)",
        "tests/science/test_langevin.py::test_its_bias_is_the_one_that_is_stated",
    ),
    Mistake(
        "deepinv's samplers: images left in [0, 1]",
        "operators/deepinv_solvers.py",
        "return self.space.from_unit(unit.float()),",
        "return unit.float(),",
        "tests/science/test_deepinv_solvers.py::test_near_the_exact_mean",
    ),
    Mistake(
        "amortized EM: first samples of the fitted Gaussian, whatever prior is given",
        "plugins/methods/amortized_em.py",
        "self._begin_at_prior(ctx)",
        "self._calibrate(ctx)",
        "tests/runs/test_initial.py::test_the_first_samples_are_of_the_prior_that_is_given",
    ),
    Mistake(
        "regressor: density of the image that was not moved back",
        "core/flow.py",
        "self.flow_inverse(affine.inverse(x), condition)",
        "self.flow_inverse(affine.inverse(x + affine.mean), condition)",
        "tests/science/test_regressor.py::test_it_moves_all_samples_by_as_much",
    ),
    Mistake(
        "regressor: as large where x is known as where it is not",
        "core/flow.py",
        "mean = mean + affine.variances() * g.pixel_variances(g.variances).rsqrt() * out",
        "mean = mean + g.pixel_variances(g.variances).sqrt() * out",
        "tests/science/test_regressor.py::test_its_errors_are_small_where_x_is_known",
    ),
    Mistake(
        "regressor: pairs teach it nothing but −log q",
        "core/flow.py",
        "return loss + _ERROR / 2 * (square",
        "return loss + 0 * (square",
        "tests/science/test_regressor.py::test_loss_of_pairs",
    ),
    Mistake(
        "regressor: away from the posterior mean",
        "core/flow.py",
        "square = (x - affine.mean).square()",
        "square = (x + affine.mean).square()",
        "tests/science/test_regressor.py::test_pairs_teach_it_the_posterior_mean",
    ),
    Mistake(
        "moments: one noise for all measurements",
        "core/per_sample_em.py",
        "noise if len(noise) == 1 else noise[chunk]",
        "noise.mean(0, keepdim=True)",
        "tests/science/test_moments.py::test_each_measurement_counts_by_its_own_noise",
    ),
    Mistake(
        "temperature: measurements that are twice in a batch count twice",
        "plugins/methods/amortized_em.py",
        "least = 1 - 2 * math.sqrt(2 / (count * entries))",
        "least = 1 - 2 * math.sqrt(2 * share / float(seen.sum()))",
        "tests/science/test_amortized_em.py"
        "::test_a_batch_of_more_than_there_are_heats_up_no_sooner",
    ),
    Mistake(
        "moments: no leading components",
        "core/evidence.py",
        "(root @ root.mT + factor @ factor.mT)",
        "(root @ root.mT + 0 * factor @ factor.mT)",
        "tests/science/test_moments.py::test_leading_components_leave_the_weak_directions_narrow",
    ),
    Mistake(
        "moments: likelihood of masks with half of its log-determinant",
        "core/per_sample_em.py",
        "log_det = 2 * lower",
        "log_det = lower",
        "tests/science/test_moments.py::test_likelihood_of_measurements_whose_operators_differ",
    ),
    Mistake(
        "tone: a curve of the pixel itself",
        "plugins/methods/_pool.py",
        "x + tone(self._smoothed(x), curve",
        "x + tone(x, curve",
        "tests/science/test_tone.py::test_weak_directions_are_not_widened",
    ),
    Mistake(
        "temperature: its square root in the place of it",
        "plugins/solvers/_information.py",
        "variance = operator.noise_variance(zero, params) * observation.temperature",
        "variance = operator.noise_variance(zero, params) * observation.temperature**0.5",
        "tests/science/test_split_gibbs.py::test_temperature",
    ),
    Mistake(
        "temperature: not in the matrices of mmps",
        "core/exact.py",
        "variance = variance * observation.temperature",
        "variance = variance * 1.0",
        "tests/science/test_mmps.py::test_temperature",
    ),
    Mistake(
        "temperature: the wrong sign of what χ² lacks",
        "plugins/methods/amortized_em.py",
        "math.exp(share * (least - self._chi_square))",
        "math.exp(share * (self._chi_square - least))",
        "tests/science/test_amortized_em.py::test_temperature_follows_the_residuals",
    ),
    Mistake(
        "tone: the wrong sign of the residual",
        "plugins/methods/_tone.py",
        "slope = weight * flat @ here.flatten() - precision @ c",
        "slope = -weight * flat @ here.flatten() - precision @ c",
        "tests/science/test_tone.py",
    ),
    Mistake(
        "tone: twice the curvature",
        "plugins/methods/_tone.py",
        "curvature = weight * flat",
        "curvature = 2 * weight * flat",
        "tests/science/test_tone.py",
    ),
    Mistake(
        "tone: the shift does not give way to the curve",
        "plugins/methods/_pool.py",
        "directions = inside * (basis - (inside * basis).mean(1, keepdim=True) / share)",
        "directions = inside * basis * share / share",
        "tests/science/test_tone.py::test_directions_are_the_derivative_of_the_images",
    ),
    Mistake(
        "watch: χ² of what is seen in the place of what is aside",
        "core/watch.py",
        "self._chi_square(self.aside, method, ctx)",
        "self._chi_square(ctx.observations, method, ctx)",
        "tests/science/test_watch.py::test_chi_square_catches_a_posterior_that_learned_the_noise_by_heart",
    ),
    Mistake(
        "watch: the run ends as its last state",
        "core/loop.py",
        "if best.step != ended:",
        "if False:",
        "tests/runs/test_watch.py::test_every_check_is_logged_and_the_best_one_is_the_run",
    ),
    Mistake(
        "watch: the method learns from what is aside",
        "core/session.py",
        "learned &= ~aside.cpu()",
        "pass",
        "tests/runs/test_watch.py::test_nobody_learns_from_what_is_aside",
    ),
    Mistake(
        "the Metropolis rule without the path's own probability",
        "plugins/solvers/split_gibbs.py",
        "beta * gain + path / (2 * rho.square())",
        "beta * gain",
        "tests/science/test_split_gibbs.py::test_any_likelihood",
    ),
    Mistake(
        "white noise in the place of the split noise",
        "plugins/solvers/split_gibbs.py",
        "information.draw(share, randn(x.shape, generator, x.device))",
        "randn(x.shape, generator, x.device)",
        "tests/science/test_split_gibbs.py::test_gaussian_posterior",
    ),
    Mistake(
        "marginal from the sample alone, without the measurement",
        "plugins/solvers/split_gibbs.py",
        "z = _split(information, images, legal, torch.ones_like(legal), generator)",
        "z = images + expand(legal, images) * randn(images.shape, generator)",
        "tests/science/test_marginal.py::test_corrects_a_wrong_prior_as_fast_as_stated",
    ),
    Mistake(
        "marginal by Euler's first slope alone",
        "core/prior.py",
        "expand(0.5 * (there - here), x) * (slope + corrected)",
        "expand(there - here, x) * slope",
        "tests/science/test_marginal.py::test_has_the_priors_covariance",
    ),
    Mistake(
        "marginal that ends at the denoised image",
        "plugins/solvers/_reverse.py",
        'return 0.5 * (x + prior("denoise", x, last))',
        'return prior("denoise", x, last)',
        "tests/science/test_marginal.py::test_has_the_priors_covariance",
    ),
    Mistake(
        "projection of the pool without its mean",
        "plugins/methods/_pool.py",
        "shift = shift + self.mean - bounds.project(images + shift).mean(0)",
        "shift = torch.zeros_like(self.mean)",
        "tests/science/test_pool.py",
    ),
    Mistake(
        "weights between the levels with the wrong sign",
        "plugins/solvers/split_gibbs.py",
        "population.reweight((beta - before)",
        "population.reweight((before - beta)",
        "tests/science/test_split_gibbs.py::test_modes_get_their_weights",
    ),
    Mistake(
        "the mean in the place of a drawn image",
        "plugins/solvers/_reverse.py",
        'prior("denoise", x, here) + errors.draw(here, generator)',
        'prior("denoise", x, here)',
        "tests/science/test_amortized_em.py::test_em_keeps_the_variance",
    ),
    Mistake(
        "log-det of a coupling with the wrong sign",
        "core/ops/coupling.py",
        "u * scale.exp() + shift, scale.flatten(1).sum(1)",
        "u * scale.exp() + shift, -scale.flatten(1).sum(1)",
        "tests/science/test_posteriors.py::test_law",
    ),
    Mistake(
        "log-det of the centring left out",
        "core/flow.py",
        "log_det.unflatten(0, (n, batch)) + affine.log_det",
        "log_det.unflatten(0, (n, batch))",
        "tests/science/test_posteriors.py::test_law",
    ),
    Mistake(
        "half of the affine posterior's log-det",
        "plugins/posteriors/affine.py",
        "- factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)",
        "- 0.5 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)",
        "tests/science/test_posteriors.py::test_law",
    ),
    Mistake(
        "constant of the standard normal dropped",
        "core/flow.py",
        "count * math.log(2 * math.pi)",
        "0.0 * count",
        "tests/science/test_posteriors.py::test_law",
    ),
    Mistake(
        "constant of the Gaussian density dropped",
        "core/gaussian.py",
        "self.space.dimension * math.log(2 * math.pi) + s.log().sum()",
        "s.log().sum()",
        "tests/science/test_gaussian.py",
    ),
    Mistake(
        "posterior covariance with half the noise",
        "core/wiener.py",
        "precision = each_entry(1 / variance.double(), batch, operator)",
        "precision = each_entry(2 / variance.double(), batch, operator)",
        "tests/science/test_posteriors.py::test_start_is_the_exact_posterior",
    ),
    Mistake(
        "windows without a margin",
        "operators/interior.py",
        "return context.reach or 0 if config.margin is None else config.margin",
        "return config.margin or 0",
        "tests/science/test_windows.py",
    ),
    Mistake(
        "samples of neighbouring windows are averaged",
        "core/windows.py",
        "if self.blend:\n                self._sum",
        "if True:\n                self._sum",
        "tests/science/test_windows.py",
    ),
    Mistake(
        "windows to learn from share pixels",
        "core/windows.py",
        "starts.append([first + i * size for i in range(count)])",
        "starts.append([first + i * (size - 1) for i in range(count)])",
        "tests/science/test_windows.py",
    ),
    Mistake(
        "noise drawn with half of σ",
        "operators/noise.py",
        "return clean + sigma * randn(",
        "return clean + 0.5 * sigma * randn(",
        "tests/science/test_noise.py",
    ),
    Mistake(
        "a chain's adjoint is its pseudo-inverse",
        "core/composition.py",
        "y = part.adjoint(y, _own(params, name))",
        "y = part.pseudo_inverse(y, _own(params, name))",
        "tests/science/test_operators.py",
    ),
    Mistake(
        "the blur's adjoint is its pseudo-inverse",
        "operators/_separable.py",
        "return self._along(y, [self.matrix(axis, params).mT for axis in axes])",
        "return self.pseudo_inverse(y, params)",
        "tests/science/test_operators.py::test_blur_adjoint",
    ),
    Mistake(
        "noise drawn anew in each epoch",
        "core/loop.py",
        "returned = session.method.step(select(ctx.observations, index, ctx.clean), ctx)",
        "fresh = ctx.operator.observe(session.dataset.split('train')[index], "
        "ctx.streams.get('again'))\n"
        "            from .method import Batch\n"
        "            returned = session.method.step(Batch(fresh, index, ctx.clean), ctx)",
        "tests/runs/test_frozen_measurements.py",
    ),
    Mistake(
        "clean images reach every method",
        "core/session.py",
        "clean = _clean(config, dataset).to(device) if needed else None",
        "clean = _clean(config, dataset).to(device)",
        "tests/science/test_controls.py::test_only_the_oracle_gets_clean_images",
    ),
    Mistake(
        "a clean image's own measurement is learned from besides",
        "core/session.py",
        "learned[examples.index] = False",
        "pass",
        "tests/science/test_few_clean.py::test_their_measurements_are_not_learned_from_besides",
    ),
    Mistake(
        "a clean image counts twice as much as a measurement",
        "plugins/methods/_examples.py",
        "share = len(ctx.examples) / (",
        "share = 2 * len(ctx.examples) / (",
        "tests/science/test_few_clean.py::test_a_clean_image_counts_as_much_as_a_measurement",
    ),
    Mistake(
        "noisy images are learned from below their noise",
        "plugins/methods/ambient_tweedie.py",
        "share = expand(1 - (noise / sigma) ** 2, y)",
        "share = torch.ones_like(expand(sigma, y))",
        "tests/science/test_few_clean.py::"
        "test_ambient_tweedie_with_clean_images_is_stationary_at_the_exact_denoiser",
    ),
    Mistake(
        "of a clean image ambient_diffusion sees nothing",
        "plugins/methods/ambient_diffusion.py",
        "whole = self._seen.new_ones(",
        "whole = self._seen.new_zeros(",
        "tests/science/test_few_clean.py::test_ambient_diffusion_sees_all_of_a_clean_image",
    ),
    Mistake(
        "neighbours of the same fold are asked, and oneself",
        "plugins/metrics/c2st.py",
        "asked = member[own, None] != member",
        "asked = member[own, None] >= 0",
        "tests/science/test_metrics.py::test_c2st_reaches_the_optimal_auc",
    ),
    Mistake(
        "a hidden pixel weighs as much as a shown one",
        "plugins/methods/ambient_diffusion.py",
        "torch.where(shown, 1 / expand(sigma, y) ** 2, 0.0)",
        "1 / expand(sigma, y) ** 2",
        "tests/science/test_baselines.py::"
        "test_ambient_diffusion_asks_unit_variance_of_the_network_in_every_pixel",
    ),
    Mistake(
        "a method's own network is opened in training mode",
        "core/session.py",
        "trainable.module.eval()",
        "pass",
        "tests/contracts/test_bundled.py::test_component_keeps_its_laws[method-ambient_diffusion]",
    ),
    Mistake(
        "products with the Jacobian are not counted",
        "plugins/solvers/mmps.py",
        "network.also_count(len(u))",
        "pass",
        "tests/science/test_mmps.py::test_products_with_the_jacobian_are_counted",
    ),
    Mistake(
        "a lap that is cut short ends at a high rate",
        "plugins/methods/em_mmps.py",
        "return min(self.config.lap_steps, self._steps - lap * self.config.lap_steps)",
        "return self.config.lap_steps",
        "tests/science/test_mmps.py::test_every_run_of_em_ends_at_its_smallest_rate",
    ),
    Mistake(
        "a price is taken beside any oracle",
        "core/bench/table.py",
        "            and row.prior == prior\n",
        "            and row.prior[0] == prior[0]\n",
        "tests/runs/test_bench.py::test_a_price_is_that_beside_the_oracle_of_the_same_settings",
    ),
    Mistake(
        "the marks of differences are reversed",
        "core/bench/compare.py",
        'if (pair["mean"] > 0) != (column.better == "higher"):',
        'if (pair["mean"] > 0) == (column.better == "higher"):',
        "tests/runs/test_bench.py::test_a_verdict_knows_the_direction_and_the_ceiling",
    ),
    Mistake(
        "Inception is shown images that were normalised",
        "core/pretrained.py",
        "[network(_resized(some, _INCEPTION_SIDE)) for",
        "[network(_normalised(_resized(some, _INCEPTION_SIDE))) for",
        "tests/science/test_pretrained.py::"
        "test_inception_s_features_are_those_of_torchvision_s_network",
    ),
    Mistake(
        "LPIPS without features of unit length",
        "core/pretrained.py",
        "apart = (_unit(a) - _unit(b)).square()",
        "apart = (a - b).square()",
        "tests/science/test_pretrained.py::test_lpips_is_its_formula",
    ),
    Mistake(
        "a budget that does not reckon with a training's last step",
        "core/bench/budget.py",
        "end = max(max(each[-1] - median(each), 0) for each in steps)",
        "end = 0",
        "tests/runs/test_bench.py::test_a_budget_holds_for_a_method_with_a_rhythm",
    ),
    Mistake(
        "chunks of an evaluation with the truth of the first one",
        "core/calibration/evaluate.py",
        "truth[start : start + size].cpu()",
        "truth[: len(part)].cpu()",
        "tests/cli/test_eval.py::test_chunks_do_not_change_the_figures",
    ),
    Mistake(
        "what a mask leaks between coefficients is taken for variance",
        "core/spectral_moments.py",
        "return (carried.square().mean(0) - power.square() * s).clamp_min(0)",
        "return torch.zeros_like(s)",
        "tests/science/test_moments.py::test_per_sample_masks_are_not_taken_for_variance",
    ),
)


def main() -> None:
    """Makes each mistake and prints what noticed it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words that a mistake's name has")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        # The repository root is the package, so the copy's folder has its name.
        copy = Path(temporary) / "flowdiff"
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        chosen = [m for m in MISTAKES if all(word in m.name for word in options.only)]
        for test in sorted({m.test for m in chosen}):
            if run(copy, test).returncode:
                sys.exit(f"{test} fails before anything was broken")
        for mistake in chosen:
            path = copy / mistake.file
            text = path.read_text()
            if text.count(mistake.old) != 1:
                sys.exit(f"{mistake.name}: {mistake.file} does not have that text once")
            path.write_text(text.replace(mistake.old, mistake.new))
            result = run(copy, mistake.test)
            path.write_text(text)
            failed = next(
                (line for line in result.stdout.splitlines() if line.startswith("FAILED")), ""
            )
            missed += not failed
            print(f"{mistake.name}: {failed.partition(' - ')[0] or 'NOT NOTICED'}", flush=True)
    sys.exit(bool(missed))


def run(copy: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Runs one test in the copy until its first failure."""
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-rf", "-p", "no:cacheprovider", test],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    main()
