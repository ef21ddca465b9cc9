"""Ancestral DDPM and DDIM sampling of a looped denoiser."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.config import sample_shape
from elt_jax.models.elt import ELT, Head
from elt_jax.models.looped import Block
from elt_jax.objectives.diffusion import x0_from
from elt_jax.objectives.schedules import Schedule, alpha_sigma, build_schedule
from elt_jax.samplers.guidance import relative_change
from elt_jax.samplers.plan import step_times
from elt_jax.samplers.sampler import Sampler

Array = jax.Array


@struct.dataclass
class SamplerState:
  """State of the sampling loop.

  Attributes:
    z: float32 [b, (f,) h, w, c], the noisy sample at the current time.
    x0: float32, same shape, the last estimate of the data: the result.
  """

  z: Array
  x0: Array


@dataclasses.dataclass(frozen=True)
class DiffusionSampler(Sampler):
  """Settings that shape the compiled program; see `Sampler` for the rest.

  Attributes:
    shape: of one sample, (h, w, c) or (f, h, w, c).
    noise_schedule: log-SNR over time, as in training.
    prediction: how the model's output is read, as in training.
    eta: 0 is DDIM, 1 ancestral DDPM, between them DDIM's family.
    clip: clips the data estimate to [-1, 1]; for pixels, not for latents.
  """

  shape: tuple[int, ...]
  noise_schedule: Schedule
  prediction: str
  eta: float
  clip: bool

  def start(self, keys: Array) -> SamplerState:
    """Pure noise."""
    z = self._noise(keys, jnp.int32(0))
    return SamplerState(z, z)

  def schedule(self) -> dict[str, Array]:
    """'k' the step; 't' its time, and 't_next', that of the next."""
    times = step_times(self.num_steps)
    return {
      'k': jnp.arange(self.num_steps),
      't': jnp.asarray(times),
      't_next': jnp.asarray(np.append(times[1:], np.float32(0))),
    }

  def bind(
    self,
    params: Any,
    state: SamplerState,
    labels: Array,
    at: dict[str, Array],
  ) -> tuple[Array, Block, Head]:
    """The head gives the estimate of the data, not clipped."""
    time = jnp.full(labels.shape, at['t'])
    seen = self.noise_schedule.network_inputs(state.z, time)
    h, block, head = self.model.bind(params, *seen, labels)
    logsnr = self.noise_schedule.logsnr(at['t'])
    x0 = lambda h: x0_from(self.prediction, head(h), state.z, logsnr)
    return h, block, x0

  def advance(
    self,
    keys: Array,
    state: SamplerState,
    output: Array,
    at: dict[str, Array],
  ) -> SamplerState:
    """To the next time."""
    x0 = self.estimate(state, output)
    noise = lambda: self._noise(keys, at['k'] + 1)
    return SamplerState(
      self._move(state.z, x0, at['t'], at['t_next'], noise), x0
    )

  def estimate(self, state: SamplerState, output: Array) -> Array:
    """The data, in range."""
    del state
    return jnp.clip(output, -1, 1) if self.clip else output

  def change(self, state: SamplerState, new: Array, old: Array) -> Array:
    """Relative, of the estimates of the data."""
    del state
    return relative_change(new, old)

  def effect(
    self, state: SamplerState, new: Array, old: Array, at: dict[str, Array]
  ) -> Array:
    """Relative change of the estimate; a K-th of it before the last step.

    The last estimate is the result. What an earlier one leaves of itself in
    the result was measured on digits, changing the loops of one step alone:
    the same share of its own change at nearly every step.
    """
    share = jnp.where(at['k'] == self.num_steps - 1, 1, 1 / self.num_steps)
    return self.change(state, new, old) * share

  def finish(self, state: SamplerState) -> Array:
    """float32 [b, *shape] in the range of the training data."""
    return state.x0

  def _noise(self, keys: Array, step: Array) -> Array:
    draw = lambda k: jax.random.normal(jax.random.fold_in(k, step), self.shape)
    return jax.vmap(draw)(keys)

  def _move(
    self, z: Array, x0: Array, t: Array, t_next: Array, noise: Callable
  ) -> Array:
    """From time t to t_next < t, given the data estimate.

    The family of DDIM (arXiv 2010.02502, eq. 12) in log-SNR: the noise kept
    is sqrt(sigma_s^2 - v), the noise added sqrt(v), with
    v = eta^2 sigma_s^2 (1 - exp(lambda_t - lambda_s)). At eta = 1 that is the
    exact posterior q(z_s | z_t, x0) of ancestral DDPM.
    """
    logsnr_t = self.noise_schedule.logsnr(t)
    logsnr_s = self.noise_schedule.logsnr(t_next)
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    eps = (z - alpha_t * x0) / sigma_t
    if self.eta == 0:
      return alpha_s * x0 + sigma_s * eps
    share = -jnp.expm1(logsnr_t - logsnr_s) * self.eta**2
    kept = sigma_s * jnp.sqrt(1 - share)
    return alpha_s * x0 + kept * eps + sigma_s * jnp.sqrt(share) * noise()


def build_sampler(config: Any, model: ELT) -> DiffusionSampler:
  """The sampler of an experiment config, to be jitted by the caller."""
  o, d, s = config.objective, config.data, config.sample
  return DiffusionSampler(
    model=model,
    num_steps=s.num_steps,
    null_label=d.num_classes,
    watch=s.watch,
    shape=sample_shape(config),
    noise_schedule=build_schedule(config),
    prediction=o.prediction,
    eta={'ddim': 0.0, 'ddpm': 1.0}[s.method],
    clip=s.clip,
  )
