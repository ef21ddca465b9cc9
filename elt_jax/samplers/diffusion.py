"""Ancestral DDPM and DDIM sampling of a looped denoiser.

One `lax.scan` over K steps with a documented state. The loop count, the
guidance scale and its interval are traced: one compiled sampler serves every
number of loops and every loop schedule.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.config import sample_shape
from elt_jax.keys import per_example
from elt_jax.models.elt import ELT
from elt_jax.objectives import diffusion
from elt_jax.samplers.guidance import guided

Array = jax.Array


def sampling_times(num_steps: int) -> np.ndarray:
  """[num_steps + 1] float32 times from 1 to 0, evenly spaced."""
  return np.linspace(1.0, 0.0, num_steps + 1, dtype=np.float32)


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
class DiffusionSampler:
  """Settings that shape the compiled program.

  Attributes:
    model: the looped denoiser.
    shape: of one sample, (h, w, c) or (f, h, w, c).
    schedule: log-SNR over time, as in training.
    prediction: how the model's output is read, as in training.
    num_steps: K, uniform steps from t = 1 to t = 0.
    eta: 0 is DDIM, 1 ancestral DDPM, between them DDIM's family.
    clip: clips the data estimate to [-1, 1]; for pixels, not for latents.
    null_label: the class of the unconditional pass.
  """

  model: ELT
  shape: tuple[int, ...]
  schedule: diffusion.CosineSchedule
  prediction: str
  num_steps: int
  eta: float
  clip: bool
  null_label: int

  def __call__(
    self,
    params: Any,
    key: Array,
    labels: Array,
    loops: Array,
    guidance: Array,
    interval: Array,
    index: Array | None = None,
  ) -> Array:
    """Draws one sample per label.

    Args:
      params: model parameters, as a rule the moving average.
      key: key of this draw.
      labels: int32 [b].
      loops: int32, scalar or [num_steps]: loops at each step.
      guidance: float32 scalar s; 1 turns guidance off.
      interval: float32 [2], the times (low, high) within which guidance acts.
      index: int32 [b], default 0..b-1. A sample's noise depends on the key
        and its index alone, not on the batch it is drawn in.

    Returns:
      float32 [b, *shape] in the range of the training data.
    """
    index = jnp.arange(labels.shape[0]) if index is None else index
    keys = per_example(key, index)
    loops = jnp.broadcast_to(jnp.asarray(loops, jnp.int32), (self.num_steps,))
    times = sampling_times(self.num_steps)

    def noise(step: Array) -> Array:
      draw = lambda k: jax.random.normal(
        jax.random.fold_in(k, step), self.shape
      )
      return jax.vmap(draw)(keys)

    def body(state: SamplerState, inputs):
      step, t, t_next, num_loops = inputs

      def denoise(z, labels):
        time = jnp.full(labels.shape, t)
        out, _ = self.model.apply(params, z, time, labels, num_loops=num_loops)
        return diffusion.x0_from(
          self.prediction, out, z, self.schedule.logsnr(t)
        )

      active = (interval[0] <= t) & (t <= interval[1])
      x0 = guided(denoise, state.z, labels, self.null_label, guidance, active)
      x0 = jnp.clip(x0, -1, 1) if self.clip else x0
      z = self._move(state.z, x0, t, t_next, lambda: noise(step + 1))
      return SamplerState(z, x0), None

    z = noise(jnp.int32(0))
    steps = jnp.arange(self.num_steps, dtype=jnp.int32)
    state, _ = jax.lax.scan(
      body, SamplerState(z, z), (steps, times[:-1], times[1:], loops)
    )
    return state.x0

  def _move(
    self, z: Array, x0: Array, t: Array, t_next: Array, noise: Callable
  ) -> Array:
    """From time t to t_next < t, given the data estimate.

    The family of DDIM (arXiv 2010.02502, eq. 12) in log-SNR: the noise kept
    is sqrt(sigma_s^2 - v), the noise added sqrt(v), with
    v = eta^2 sigma_s^2 (1 - exp(lambda_t - lambda_s)). At eta = 1 that is the
    exact posterior q(z_s | z_t, x0) of ancestral DDPM.
    """
    logsnr_t, logsnr_s = self.schedule.logsnr(t), self.schedule.logsnr(t_next)
    alpha_t, sigma_t = diffusion.alpha_sigma(logsnr_t)
    alpha_s, sigma_s = diffusion.alpha_sigma(logsnr_s)
    eps = (z - alpha_t * x0) / sigma_t
    if self.eta == 0:
      return alpha_s * x0 + sigma_s * eps
    share = -jnp.expm1(logsnr_t - logsnr_s) * self.eta**2
    kept = sigma_s * jnp.sqrt(1 - share)
    return alpha_s * x0 + kept * eps + sigma_s * jnp.sqrt(share) * noise()


def guidance_scales(config: Any, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """(time, scale) of each sampling step, [K] each."""
  times = sampling_times(config.sample.num_steps)[:-1]
  return times, np.full_like(times, scale)


def build_sampler(config: Any, model: ELT) -> DiffusionSampler:
  """The sampler of an experiment config, to be jitted by the caller."""
  o, d, s = config.objective, config.data, config.sample
  return DiffusionSampler(
    model=model,
    shape=sample_shape(config),
    schedule=diffusion.CosineSchedule(
      o.logsnr_min, o.logsnr_max, o.logsnr_shift
    ),
    prediction=o.prediction,
    num_steps=s.num_steps,
    eta={'ddim': 0.0, 'ddpm': 1.0}[s.method],
    clip=s.clip,
    null_label=d.num_classes,
  )
