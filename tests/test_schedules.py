"""Log-SNR over time: closed forms, densities, what a network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_base
from elt_jax import validation
from elt_jax.objectives import schedules
from elt_jax.objectives.schedules import (
  CosineSchedule,
  InterpolantSchedule,
  LinearBetaSchedule,
)

T = jnp.linspace(0.001, 0.999, 64)
ALL = [
  CosineSchedule(-15.0, 15.0, 1.0),
  LinearBetaSchedule(),
  InterpolantSchedule(-15.0, 15.0, 1.0),
]
# Whole steps of DDPM, 0..999, as times.
STEPS = np.arange(1000)
STEP_TIMES = (STEPS + 1) / np.float32(1000)


def alpha_bar():
  """Of DDPM's 1000 linear betas, by its definition."""
  return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize('shift', [0.0, 2 * np.log(0.5)])
@pytest.mark.parametrize('kind', [CosineSchedule, InterpolantSchedule])
def test_log_snr_runs_from_max_to_min_and_is_shifted(kind, shift):
  schedule = kind(-9.0, 7.0, shift)
  ends = schedule.logsnr(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(ends, [7.0 + shift, -9.0 + shift], atol=1e-3)


@pytest.mark.parametrize('schedule', ALL, ids=lambda s: type(s).__name__)
def test_log_snr_falls_and_density_is_its_derivative(schedule):
  with jax.enable_x64(True):
    # Not on the corners of a piecewise linear one.
    t = jnp.linspace(0.01, 0.99, 99, dtype=jnp.float64) + 3e-4
    step = 1e-6
    slope = (schedule.logsnr(t + step) - schedule.logsnr(t - step)) / (2 * step)
    assert (slope < 0).all()
    np.testing.assert_allclose(schedule.density(t), -slope, rtol=1e-4)


@pytest.mark.parametrize('schedule', ALL, ids=lambda s: type(s).__name__)
def test_density_integrates_to_the_log_snr(schedule):
  with jax.enable_x64(True):
    n = 200_000
    middles = (jnp.arange(n, dtype=jnp.float64) + 0.5) / n
    whole = schedule.logsnr(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(
      schedule.density(middles).mean(), whole[0] - whole[1], rtol=1e-3
    )


def test_without_bounds_it_is_the_cosine_schedule():
  """alpha = cos(pi t / 2) for wide bounds."""
  alpha, sigma = schedules.alpha_sigma(CosineSchedule(-40, 40).logsnr(T))
  np.testing.assert_allclose(alpha, np.cos(np.pi * T / 2), atol=1e-4)
  np.testing.assert_allclose(sigma, np.sin(np.pi * T / 2), atol=1e-4)


def test_linear_betas_are_those_of_ddpm():
  alpha, sigma = schedules.alpha_sigma(LinearBetaSchedule().logsnr(STEP_TIMES))
  np.testing.assert_allclose(alpha**2, alpha_bar(), rtol=1e-4)
  np.testing.assert_allclose(sigma**2, 1 - alpha_bar(), rtol=1e-4)
  assert alpha[-1] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_linear_betas_rest_at_their_first_step():
  schedule, z = LinearBetaSchedule(), np.ones((3, 2, 2, 1))
  t = jnp.array([0.0, 5e-4, 1e-3])
  np.testing.assert_allclose(
    schedule.logsnr(t), np.log(0.9999 / 1e-4), rtol=1e-5
  )
  np.testing.assert_array_equal(schedule.density(t), 0)
  np.testing.assert_array_equal(schedule.network_inputs(z, t)[1], 0)


def test_a_network_of_linear_betas_is_told_the_step():
  z = np.random.default_rng(0).standard_normal((1000, 2, 2, 1))
  seen, told = LinearBetaSchedule().network_inputs(z, jnp.asarray(STEP_TIMES))
  np.testing.assert_array_equal(seen, z)
  np.testing.assert_allclose(1000 * told, STEPS, atol=2e-4)


@pytest.mark.parametrize('shift', [0.0, -1.5])
def test_a_network_of_the_interpolant_sees_a_straight_line(shift):
  """y = (1 - u) x + u eps at every time, and it is told 1 - u."""
  schedule = InterpolantSchedule(-20.0, 20.0, shift)
  x, eps = np.random.default_rng(0).standard_normal((2, len(T), 3, 3, 1))
  logsnr = schedule.logsnr(T)
  alpha, sigma = (
    schedules.per_image(a, x) for a in schedules.alpha_sigma(logsnr)
  )
  y, told = schedule.network_inputs(alpha * x + sigma * eps, T)
  u = schedules.per_image(1 - told, x)
  np.testing.assert_allclose(y, (1 - u) * x + u * eps, atol=1e-5)
  np.testing.assert_allclose(2 * np.log(told / (1 - told)), logsnr, atol=1e-3)
  if not shift:
    np.testing.assert_allclose(told, 1 - T, atol=1e-4)


def test_a_network_of_the_cosine_schedule_sees_z_and_t():
  z = np.ones((len(T), 2))
  seen, told = CosineSchedule().network_inputs(z, T)
  assert seen is z and told is T


def test_a_shift_of_linear_betas_is_refused():
  config = get_base()
  config.objective.update({'schedule': 'linear_beta', 'logsnr_shift': -1.0})
  with pytest.raises(ValueError, match='logsnr_shift = -1.0 is of other'):
    validation.validate(config)
