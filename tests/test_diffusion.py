"""The process, the three forms of the weighted loss, and the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.data.transforms import to_unit_range
from elt_jax.objectives import diffusion
from elt_jax.objectives.diffusion import CosineSchedule, loss_weight
from tests.helpers import loss_at, make_objective

T = jnp.linspace(0.001, 0.999, 64)


@pytest.mark.parametrize('shift', [0.0, 2 * np.log(0.5)])
def test_log_snr_runs_from_max_to_min_and_is_shifted(shift):
  schedule = CosineSchedule(-9.0, 7.0, shift)
  ends = schedule.logsnr(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(ends, [7.0 + shift, -9.0 + shift], atol=1e-3)
  assert (np.diff(schedule.logsnr(T)) < 0).all()


def test_without_bounds_it_is_the_cosine_schedule():
  """alpha = cos(pi t / 2) for wide bounds."""
  alpha, sigma = diffusion.alpha_sigma(CosineSchedule(-40, 40).logsnr(T))
  np.testing.assert_allclose(alpha, np.cos(np.pi * T / 2), atol=1e-4)
  np.testing.assert_allclose(sigma, np.sin(np.pi * T / 2), atol=1e-4)


def test_density_is_the_derivative_of_the_log_snr():
  with jax.enable_x64(True):
    t = jnp.linspace(0.01, 0.99, 99, dtype=jnp.float64)
    schedule, step = CosineSchedule(-15.0, 15.0, 1.0), 1e-6
    slope = (schedule.logsnr(t + step) - schedule.logsnr(t - step)) / (2 * step)
    np.testing.assert_allclose(schedule.density(t), -slope, rtol=1e-4)


@pytest.mark.parametrize('bias', [-2.0, 0.0, 3.0, None])
def test_the_three_forms_of_the_weighted_loss_agree(bias):
  with jax.enable_x64(True):
    t = jnp.linspace(0.01, 0.99, 50, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x, eps, guess = rng.standard_normal((3, 50))
    schedule = CosineSchedule(-15.0, 15.0)
    logsnr = schedule.logsnr(t)
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    z = alpha * x + sigma * eps
    eps_guess = (z - alpha * guess) / sigma
    errors = {
      'x0': x - guess,
      'eps': eps - eps_guess,
      'v': (alpha * eps - sigma * x) - (alpha * eps_guess - sigma * guess),
    }
    losses = {
      form: loss_weight(form, logsnr, schedule.density(t), bias) * error**2
      for form, error in errors.items()
    }
    np.testing.assert_allclose(losses['x0'], losses['eps'], rtol=1e-8)
    np.testing.assert_allclose(losses['v'], losses['eps'], rtol=1e-8)


@pytest.mark.parametrize('prediction', ['v', 'x0', 'eps'])
def test_x0_from_inverts_every_parametrisation(prediction):
  rng = np.random.default_rng(1)
  x, eps = rng.standard_normal((2, 20)).astype(np.float32)
  logsnr = jnp.linspace(-4, 6, 20)
  alpha, sigma = diffusion.alpha_sigma(logsnr)
  output = {'x0': x, 'eps': eps, 'v': alpha * eps - sigma * x}[prediction]
  got = diffusion.x0_from(prediction, output, alpha * x + sigma * eps, logsnr)
  np.testing.assert_allclose(got, x, atol=1e-4)


@pytest.mark.parametrize('prediction', ['v', 'x0', 'eps'])
def test_loss_equals_a_computation_by_hand(config, prediction):
  config.objective.exits = 'none'
  config.objective.prediction = prediction
  config.objective.label_dropout = 0.0
  objective, params, batch = make_objective(config)
  key = jax.random.key(5)
  loss, _ = loss_at(objective, params, batch, 3, key)

  loops = config.model.max_loops
  model_output = jax.jit(
    lambda p, i: objective.model.apply(p, *i, num_loops=loops)
  )
  _, key_examples = jax.random.split(jax.random.fold_in(key, 3))
  total = 0.0
  for i in range(8):
    k_t, k_eps = jax.random.split(jax.random.fold_in(key_examples, i))
    x = batch['image'][i].astype(np.float32) / 127.5 - 1
    t, _ = jax.random.uniform(k_t, (2,))
    eps = jax.random.normal(k_eps, x.shape)
    logsnr = objective.schedule.logsnr(t)
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    z = alpha * x + sigma * eps
    inputs = (z[None], t[None], batch['label'][i : i + 1])
    out, _ = model_output(params, inputs)
    x0 = diffusion.x0_from(prediction, out[0], z, logsnr)
    # The x0 form of the weighting, whatever the network predicts.
    weight = loss_weight('x0', logsnr, objective.schedule.density(t), 0.0)
    total += weight * np.mean((x0 - x) ** 2)
  np.testing.assert_allclose(loss, total / 8, rtol=1e-4)


def test_an_example_is_noised_alike_in_any_part_of_any_batch(config):
  """Halves of a batch average to the whole: accumulation changes nothing."""
  objective, params, batch = make_objective(config)
  whole, _ = loss_at(objective, params, batch, 2)
  halves = [
    loss_at(objective, params, {k: v[i::2] for k, v in batch.items()}, 2)[0]
    for i in (0, 1)
  ]
  np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)


def test_label_dropout_one_ignores_the_labels(config):
  losses = []
  for dropout in (0.0, 1.0):
    config.objective.label_dropout = dropout
    objective, params, batch = make_objective(config)
    other = batch | {'label': (batch['label'] + 1) % 4}
    losses.append([loss_at(objective, params, b, 0)[0] for b in (batch, other)])
  assert losses[0][0] != losses[0][1]
  assert losses[1][0] == losses[1][1]


def test_uint8_becomes_minus_one_to_one():
  image = jnp.array([0, 255], jnp.uint8)
  np.testing.assert_allclose(to_unit_range(image), [-1, 1])
  np.testing.assert_allclose(to_unit_range(jnp.array([0.25])), [0.25])
