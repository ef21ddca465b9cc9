"""The diffusion sampler against closed forms, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.keys import per_example
from elt_jax.models import build_model
from elt_jax.objectives import schedules
from elt_jax.samplers.diffusion import DiffusionSampler
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import build_plan
from tests.conftest import tiny_config
from tests.helpers import init, noisy


class Gaussian:
  """The exact denoiser of data N(mean, std^2), in place of a network."""

  def __init__(self, schedule, mean=0.3, std=0.5):
    self.schedule, self.mean, self.std = schedule, mean, std

  def bind(self, params, z, t, labels):
    alpha, sigma = schedules.alpha_sigma(self.schedule.logsnr(t))
    alpha, sigma = (schedules.per_image(a, z) for a in (alpha, sigma))
    gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
    x0 = self.mean + gain * (z - alpha * self.mean)
    return z, lambda h, i: h, lambda h: x0


class StepGaussian(Gaussian):
  """The same as a network of DDPM: told the step, predicts the noise."""

  def bind(self, params, z, t, labels):
    bars = jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, 1000))
    bar = schedules.per_image(bars[jnp.round(1000 * t).astype(int)], z)
    gain = jnp.sqrt(bar) * self.std**2 / (bar * self.std**2 + 1 - bar)
    x0 = self.mean + gain * (z - jnp.sqrt(bar) * self.mean)
    eps = (z - jnp.sqrt(bar) * x0) / jnp.sqrt(1 - bar)
    return z, lambda h, i: h, lambda h: eps


class LineGaussian(Gaussian):
  """The same as a network of SiT: sees the line, predicts the velocity."""

  def velocity(self, y, u):
    """eps - x of y = (1 - u) x + u eps."""
    gain = (1 - u) * self.std**2 / ((1 - u) ** 2 * self.std**2 + u**2)
    return (y - self.mean - gain * (y - (1 - u) * self.mean)) / u

  def bind(self, params, y, t, labels):
    u = schedules.per_image(1 - t, y)
    return y, lambda h, i: h, lambda h: self.velocity(y, u)


def exact(
  schedule, num_steps, eta, shape=(8, 8, 1), model=Gaussian, prediction='x0'
):
  return DiffusionSampler(
    model=model(schedule),
    num_steps=num_steps,
    null_label=None,
    watch='output',
    shape=shape,
    noise_schedule=schedule,
    prediction=prediction,
    eta=eta,
    clip=False,
  )


COSINE = (schedules.CosineSchedule(-12.0, 12.0), Gaussian, 'x0')
LINEAR_BETA = (schedules.LinearBetaSchedule(), StepGaussian, 'eps')
LINE = (schedules.InterpolantSchedule(-23.0, 23.0), LineGaussian, 'velocity')


@pytest.mark.parametrize(
  'process,eta,steps',
  [
    (COSINE, 0.0, 200),
    (COSINE, 1.0, 400),
    (COSINE, 0.5, 300),
    (LINEAR_BETA, 0.0, 250),
    (LINEAR_BETA, 1.0, 500),
    (LINE, 0.0, 200),
    (LINE, 1.0, 400),
  ],
)
def test_exact_denoiser_gives_exact_moments(config, process, eta, steps):
  schedule, model, prediction = process
  sampler = exact(schedule, steps, eta, model=model, prediction=prediction)
  config.sample.num_steps = steps
  x, _ = jax.jit(sampler.__call__)(
    {}, jax.random.key(0), jnp.zeros(512, jnp.int32), build_plan(config, 1)
  )
  np.testing.assert_allclose(x.mean(), 0.3, atol=0.01)
  np.testing.assert_allclose(x.std(), 0.5, atol=0.01)


def test_ddim_of_the_interpolant_is_euler_along_the_line(config):
  """As SiT integrates its velocity, data minus noise, from t = 0 to 1."""
  schedule, model, prediction = LINE
  config.sample.num_steps = steps = 10
  sampler = exact(schedule, steps, 0.0, model=model, prediction=prediction)
  keys = per_example(jax.random.key(0), jnp.arange(4))
  y = np.asarray(sampler.start(keys).z)
  network = model(schedule)
  for k in range(steps):
    y = y - network.velocity(y, 1 - k / steps) / steps
  x, _ = jax.jit(sampler.__call__)(
    {}, jax.random.key(0), jnp.zeros(4, jnp.int32), build_plan(config, 1)
  )
  np.testing.assert_allclose(x, y, atol=1e-4)


def test_eta_one_is_the_ddpm_posterior():
  """Mean and variance of q(z_s | z_t, x) from Bayes' rule."""
  schedule = schedules.CosineSchedule(-10.0, 10.0)
  sampler = exact(schedule, 1, 1.0, ())
  z, x0, t, s = 0.7, -0.4, jnp.float32(0.6), jnp.float32(0.35)
  a_t, s_t = schedules.alpha_sigma(schedule.logsnr(t))
  a_s, s_s = schedules.alpha_sigma(schedule.logsnr(s))
  a_ts = a_t / a_s
  var_ts = s_t**2 - a_ts**2 * s_s**2
  precision = 1 / s_s**2 + a_ts**2 / var_ts
  mean = (a_s * x0 / s_s**2 + a_ts * z / var_ts) / precision
  move = lambda noise: sampler._move(z, x0, t, s, lambda: noise)
  np.testing.assert_allclose(move(0.0), mean, rtol=1e-5)
  np.testing.assert_allclose(
    move(1.0) - move(0.0), np.sqrt(1 / precision), rtol=1e-5
  )


@functools.cache
def draw_with(**changes):
  """(draw, parameters), compiled once for the tests that ask for the same."""
  config = tiny_config()
  config.sample.update(changes)
  model, params, _ = init(config)
  mesh = jax.make_mesh(
    (8, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  return Draw(config, model, mesh), noisy(params, 0.1)


def test_constant_schedule_is_the_scalar_and_schedules_matter():
  draw, params = draw_with()
  labels = np.arange(4)
  scalar = draw(params, labels, 3, seed=0)
  np.testing.assert_array_equal(
    draw(params, labels, [3, 3, 3, 3], seed=0), scalar
  )
  assert (
    np.abs(draw(params, labels, [1, 3, 3, 3], seed=0) - scalar).max() > 1e-5
  )


def test_a_sample_depends_on_its_seed_and_index_alone():
  draw, params = draw_with()
  labels = np.arange(12) % 4
  whole = draw(params, labels, 2, seed=1)
  np.testing.assert_allclose(
    draw(params, labels[:5], 2, seed=1), whole[:5], atol=1e-6
  )
  assert np.abs(draw(params, labels, 2, seed=2) - whole).max() > 0.1


def test_samples_do_not_depend_on_the_number_of_devices(config):
  draw, params = draw_with()
  labels = np.arange(8) % 4
  model = build_model(config)
  alone = jax.make_mesh(
    (1, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )
  one = Draw(config, model, alone)
  for loops in (2, 'converge:tol=0.05:max=6'):
    want = draw.sample(params, labels, loops, seed=0)
    got = one.sample(params, labels, loops, seed=0)
    np.testing.assert_allclose(got.samples, want.samples, atol=1e-5)
    np.testing.assert_array_equal(got.spent[0].loops, want.spent[0].loops)
  assert 1 < got.spent[0].loops.mean() < 6
  for a, b in zip(
    jax.tree.leaves(one.probe(params, 5, 4, seed=0)),
    jax.tree.leaves(draw.probe(params, 5, 4, seed=0)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_ddpm_differs_from_ddim_and_both_are_repeatable():
  out = {}
  for method in ('ddim', 'ddpm'):
    draw, params = draw_with(method=method)
    out[method] = draw(params, np.arange(4), 2, seed=0)
    np.testing.assert_array_equal(
      draw(params, np.arange(4), 2, seed=0), out[method]
    )
  assert np.abs(out['ddim'] - out['ddpm']).max() > 0.01


def test_clip_bounds_the_result():
  draw, params = draw_with()
  assert np.abs(draw(params, np.arange(4), 2, seed=0)).max() <= 1
  draw, params = draw_with(clip=False)
  big = jax.tree.map(lambda x: 5 * x, params)
  assert np.abs(draw(big, np.arange(4), 2, seed=0)).max() > 1


@pytest.mark.parametrize('labels', [[-1], [0, 4]])
def test_labels_out_of_range_raise(labels):
  draw, params = draw_with()
  with pytest.raises(ValueError, match=r'Labels must be in 0\.\.3'):
    draw(params, np.array(labels), 1, seed=0)
