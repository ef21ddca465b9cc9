"""Schedules of a diffusion process: the log-SNR over time.

Time runs from t = 0 (data) to t = 1 (noise); z = alpha x + sigma eps with
alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda), lambda the log
signal-to-noise ratio. Processes that scale z otherwise differ from this one by
a known factor: `network_inputs` gives a network what it would see of them, and
all else, sampling and losses, works on z and lambda.

Cosine with shift: simple diffusion (Hoogeboom et al., arXiv 2301.11093). Linear
betas: DDPM (Ho et al., arXiv 2006.11239), as DiT (arXiv 2212.09748) uses them.
Interpolant: SiT (Ma et al., arXiv 2401.08740).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Schedule:
  """lambda(t) of t in [0, 1], falling."""

  def logsnr(self, t: Array) -> Array:
    """lambda at time t."""
    raise NotImplementedError

  def density(self, t: Array) -> Array:
    """-dlambda/dt, not negative."""
    raise NotImplementedError

  def network_inputs(self, z: Array, t: Array) -> tuple[Array, Array]:
    """What the network is given: z [b, ...] and t [b], in its own terms.

    The time is in [0, 1]; the model multiplies it by its `time_scale`.
    """
    return z, t


@dataclasses.dataclass(frozen=True)
class CosineSchedule(Schedule):
  """lambda(t) = -2 log tan(a + t (b - a)) + shift, from max to min.

  Attributes:
    logsnr_min: lambda(1), before the shift.
    logsnr_max: lambda(0), before the shift.
    shift: added to lambda; 2 log(d0 / d) moves the schedule of a base
      resolution d0 to images of side d.
  """

  logsnr_min: float = -15.0
  logsnr_max: float = 15.0
  shift: float = 0.0

  def _angle(self, t: Array) -> tuple[Array, float]:
    a = math.atan(math.exp(-self.logsnr_max / 2))
    b = math.atan(math.exp(-self.logsnr_min / 2))
    return a + t * (b - a), b - a

  def logsnr(self, t: Array) -> Array:
    """lambda at time t in [0, 1]."""
    angle, _ = self._angle(t)
    return -2 * jnp.log(jnp.tan(angle)) + self.shift

  def density(self, t: Array) -> Array:
    """-dlambda/dt = 4 (b - a) / sin(2 angle), positive."""
    angle, span = self._angle(t)
    return 4 * span / jnp.sin(2 * angle)


@dataclasses.dataclass(frozen=True)
class LinearBetaSchedule(Schedule):
  """DDPM's process of discrete steps, lambda linear between them.

  Time t is step max(num_steps t - 1, 0), counted from 0: K steps of sampling
  at times 1 - k / K are whole steps where K divides `num_steps`, the last step
  first. (diffusers calls that spacing 'trailing'.) The first step has as large
  a share of the times as it has of the steps; lambda rests there, so that its
  density, and with it the sigmoid weighting, is 0.

  Attributes:
    num_steps: steps of the process.
    beta_first: variance that the first step adds.
    beta_last: variance that the last step adds.
  """

  num_steps: int = 1000
  beta_first: float = 1e-4
  beta_last: float = 0.02

  def _step(self, t: Array) -> Array:
    return jnp.maximum(self.num_steps * t - 1, 0)

  def logsnr(self, t: Array) -> Array:
    """lambda at time t in [0, 1]."""
    step, before, table, falls = self._between(t)
    return table[before] - (step - before) * falls[before]

  def density(self, t: Array) -> Array:
    """-dlambda/dt, constant from one step to the next."""
    step, before, _, falls = self._between(t)
    return jnp.where(step > 0, self.num_steps * falls[before], 0)

  def _between(self, t: Array) -> tuple[Array, Array, Array, Array]:
    """(step, the whole one before, lambda of all, its falls between them)."""
    table = _linear_beta_logsnr(self)
    step = self._step(t)
    before = jnp.clip(step.astype(jnp.int32), 0, self.num_steps - 2)
    return step, before, jnp.asarray(table), jnp.asarray(-np.diff(table))

  def network_inputs(self, z: Array, t: Array) -> tuple[Array, Array]:
    """z, and the share of the steps that come before."""
    return z, self._step(t) / self.num_steps


@functools.cache
def _linear_beta_logsnr(schedule: LinearBetaSchedule) -> np.ndarray:
  """float64 [num_steps]: log alpha_bar / (1 - alpha_bar) after each step."""
  s = schedule
  betas = np.linspace(s.beta_first, s.beta_last, s.num_steps)
  log_alpha_bar = np.cumsum(np.log1p(-betas))
  return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))


@dataclasses.dataclass(frozen=True)
class InterpolantSchedule(Schedule):
  """lambda(t) = 2 log((1 - u) / u) + shift, u linear in t: from max to min.

  u runs from nearly 0 to nearly 1, and y = (1 - u) x + u eps, the straight
  line from data to noise, is what the network sees: y = z / (alpha + sigma).
  It is told 1 - u, the share of the data: time in SiT runs the other way.

  Attributes:
    logsnr_min, logsnr_max, shift: as of `CosineSchedule`.
  """

  logsnr_min: float = -15.0
  logsnr_max: float = 15.0
  shift: float = 0.0

  def _shares(self, t: Array) -> tuple[Array, Array, float]:
    """(1 - u, u, du/dt); neither is the difference of nearly equal numbers."""
    share = lambda logsnr: 1 / (1 + math.exp(logsnr / 2))
    first, last = share(self.logsnr_max), share(self.logsnr_min)
    span = last - first
    data = share(-self.logsnr_min) + (1 - t) * span
    return data, first + t * span, span

  def logsnr(self, t: Array) -> Array:
    """lambda at time t in [0, 1]."""
    data, noise, _ = self._shares(t)
    return 2 * (jnp.log(data) - jnp.log(noise)) + self.shift

  def density(self, t: Array) -> Array:
    """-dlambda/dt = 2 du/dt / (u (1 - u)), positive."""
    data, noise, span = self._shares(t)
    return 2 * span / (data * noise)

  def network_inputs(self, z: Array, t: Array) -> tuple[Array, Array]:
    """y, and the share of the data in it."""
    logsnr = self.logsnr(t)
    alpha, sigma = alpha_sigma(logsnr)
    return z / per_image(alpha + sigma, z), jax.nn.sigmoid(logsnr / 2)


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
  """(alpha, sigma), alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def per_image(values: Array, like: Array) -> Array:
  """[b] -> [b, 1, ...], to broadcast over images or clips."""
  return values.reshape(-1, *(1,) * (like.ndim - 1))


def build_schedule(config: Any) -> Schedule:
  """The schedule of an experiment config."""
  o = config.objective
  if o.schedule == 'linear_beta':
    return LinearBetaSchedule()
  schedule = {'cosine': CosineSchedule, 'interpolant': InterpolantSchedule}
  return schedule[o.schedule](o.logsnr_min, o.logsnr_max, o.logsnr_shift)
