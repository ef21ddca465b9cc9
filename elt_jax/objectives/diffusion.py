"""The diffusion process and its weighted loss.

`schedules` has the process: z = alpha x + sigma eps and its log-SNR lambda over
time. Sigmoid weighting: VDM++ (Kingma and Gao, arXiv 2303.00848) and SiD2
(arXiv 2410.19324).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.data.transforms import to_unit_range
from elt_jax.keys import per_example
from elt_jax.models.elt import ELT
from elt_jax.objectives.ilsd import (
  LoopedObjective,
  Problem,
  build_exit_loss,
)
from elt_jax.objectives.schedules import (
  Schedule,
  alpha_sigma,
  build_schedule,
  per_image,
)

Array = jax.Array


def x0_from(prediction: str, output: Array, z: Array, logsnr: Array) -> Array:
  """The data estimate of a network output, in the network's parametrisation.

  v = alpha eps - sigma x gives x = alpha z - sigma v; eps gives
  x = (z - sigma eps) / alpha; velocity, which is eps - x, gives
  x = (z - sigma velocity) / (alpha + sigma).
  """
  alpha, sigma = alpha_sigma(logsnr)
  if prediction == 'x0':
    return output
  if prediction == 'v':
    return alpha * z - sigma * output
  scale = alpha + sigma if prediction == 'velocity' else alpha
  return (z - sigma * output) / scale


def loss_weight(
  prediction: str,
  logsnr: Array,
  density: Array,
  weighting: str,
  bias: float = 0.0,
) -> Array:
  """Weight of the squared error of `prediction`: the forms of one loss.

  `weighting` is 'sigmoid', with `bias` b and `density` -dlambda/dt:

      1/2 (-dlambda/dt) sigmoid(b - lambda)                  on eps
      1/2 (-dlambda/dt) sigmoid(b - lambda) sigmoid(lambda)  on v
      1/2 (-dlambda/dt) e^b sigmoid(lambda - b)              on x0

  or the name of a prediction, whose plain mean squared error is the loss:
  that of eps is DDPM's, that of velocity SiT's. All forms agree because, at
  one z, the errors of eps, v, x0 and velocity are as
  alpha : 1 : sigma : alpha + sigma.
  """
  if weighting != 'sigmoid':
    return _weight_of_v(prediction, logsnr) / _weight_of_v(weighting, logsnr)
  if prediction == 'x0':
    return 0.5 * density * math.exp(bias) * jax.nn.sigmoid(logsnr - bias)
  on_eps = 0.5 * density * jax.nn.sigmoid(bias - logsnr)
  if prediction == 'eps':
    return on_eps
  return on_eps * jax.nn.sigmoid(logsnr) * _weight_of_v(prediction, logsnr)


def _weight_of_v(prediction: str, logsnr: Array) -> Array:
  """The weight on the squared error of `prediction` that makes it that of v."""
  if prediction == 'v':
    return jnp.ones_like(logsnr)
  if prediction == 'velocity':
    alpha, sigma = alpha_sigma(logsnr)
    return 1 / jnp.square(alpha + sigma)
  # 1 / sigma^2 = 1 + exp(lambda) on x0, 1 / alpha^2 on eps.
  return 1 + jnp.exp(logsnr if prediction == 'x0' else -logsnr)


@dataclasses.dataclass(frozen=True)
class DiffusionObjective(LoopedObjective):
  """Weighted mean squared error at every trained exit.

  Attributes:
    schedule: log-SNR over time.
    prediction: how the model's output is read, 'v', 'x0', 'eps' or 'velocity'.
    weighting: of the squared error, see `loss_weight`.
    sigmoid_bias: b of the sigmoid weighting.
    label_dropout: probability of the null class.
    num_classes: id of the null class.
  """

  schedule: Schedule
  prediction: str
  weighting: str
  sigmoid_bias: float
  label_dropout: float
  num_classes: int

  def problem(
    self, batch: dict[str, Array], key: Array, step: Array
  ) -> Problem:
    """Losses are means over the batch and over pixels, weighted by time.

    Args:
      batch: 'image' uint8 [b, h, w, c] (0..255) or float in [-1, 1], or clips
        [b, f, h, w, c]; 'label' int32 [b]; 'index' int32 [b], the position in
        the global batch: an example's noise depends on it, and on nothing of
        how the batch is split. With 'image_std', of the shape of 'image', the
        data are drawn from the Gaussian of these two, as latents are.
      key: key of the run; `step` is folded in here.
      step: int32 scalar.
    """
    key = jax.random.fold_in(key, step)
    key_exit, key_examples = jax.random.split(key)
    x = to_unit_range(batch['image'])
    keys = per_example(key_examples, batch['index'])
    t, eps, drop = jax.vmap(lambda k: self._draw(k, x.shape[1:]))(keys)
    if 'image_std' in batch:
      # 0 and 1 would be the keys that `_draw` splits off.
      draw = lambda k: jax.random.normal(jax.random.fold_in(k, 2), x.shape[1:])
      x += batch['image_std'] * jax.vmap(draw)(keys)
    labels = jnp.where(drop, self.num_classes, batch['label'])

    logsnr = self.schedule.logsnr(t)
    alpha, sigma = (per_image(a, x) for a in alpha_sigma(logsnr))
    z = alpha * x + sigma * eps
    target = {
      'x0': x,
      'eps': eps,
      'v': alpha * eps - sigma * x,
      'velocity': eps - x,
    }[self.prediction]
    weight = loss_weight(
      self.prediction,
      logsnr,
      self.schedule.density(t),
      self.weighting,
      self.sigmoid_bias,
    )

    def weighted_mse(output: Array, reference: Array) -> Array:
      error = jnp.mean(
        jnp.square(output - reference), axis=tuple(range(1, x.ndim))
      )
      return jnp.mean(weight * error)

    def distance(output: Array, final: Array) -> Array:
      """Of the estimates of the data, relative to their size."""
      output, final = (
        x0_from(self.prediction, x, z, per_image(logsnr, x))
        for x in (output, final)
      )
      return jnp.linalg.norm(output - final) / jnp.linalg.norm(final)

    return Problem(
      inputs=(*self.schedule.network_inputs(z, t), labels),
      ground_truth=lambda output: weighted_mse(output, target),
      distill=weighted_mse,
      agreement=lambda output, final: 1 - distance(output, final),
      key=key_exit,
    )

  def _draw(
    self, key: Array, shape: tuple[int, ...]
  ) -> tuple[Array, Array, Array]:
    """(time, noise, whether the label is dropped) of one example."""
    key_uniform, key_eps = jax.random.split(key)
    t, u = jax.random.uniform(key_uniform, (2,))
    return t, jax.random.normal(key_eps, shape), u < self.label_dropout


def build_objective(config: Any, model: ELT) -> DiffusionObjective:
  """The objective of an experiment config."""
  o = config.objective
  return DiffusionObjective(
    model=model,
    exit_loss=build_exit_loss(config),
    schedule=build_schedule(config),
    prediction=o.prediction,
    weighting=o.weighting,
    sigmoid_bias=o.sigmoid_bias,
    label_dropout=o.label_dropout,
    num_classes=config.data.num_classes,
  )
