"""The diffusion process and its weighted loss.

Time runs from t = 0 (data) to t = 1 (noise); z = alpha x + sigma eps with
alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda), lambda the log
signal-to-noise ratio. Cosine schedule with shift: simple diffusion (Hoogeboom
et al., arXiv 2301.11093). Sigmoid weighting: VDM++ (Kingma and Gao, arXiv
2303.00848) and SiD2 (arXiv 2410.19324).
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

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
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


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
  """(alpha, sigma), alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def x0_from(prediction: str, output: Array, z: Array, logsnr: Array) -> Array:
  """The data estimate of a network output, in the network's parametrisation.

  v = alpha eps - sigma x gives x = alpha z - sigma v; eps gives
  x = (z - sigma eps) / alpha.
  """
  alpha, sigma = alpha_sigma(logsnr)
  if prediction == 'x0':
    return output
  if prediction == 'v':
    return alpha * z - sigma * output
  return (z - sigma * output) / alpha


def loss_weight(
  prediction: str, logsnr: Array, density: Array, bias: float | None
) -> Array:
  """Weight of the squared error of `prediction`: three forms of one loss.

      1/2 (-dlambda/dt) sigmoid(b - lambda)                  on eps
      1/2 (-dlambda/dt) sigmoid(b - lambda) sigmoid(lambda)  on v
      1/2 (-dlambda/dt) e^b sigmoid(lambda - b)              on x0

  They agree because, at one z, the errors of eps, v and x0 are as
  alpha : 1 : sigma. `density` is -dlambda/dt. Without a `bias` the loss is
  the plain mean squared error of v, weight 1 on v.
  """
  if bias is None:
    if prediction == 'v':
      return jnp.ones_like(logsnr)
    # 1 / sigma^2 = 1 + exp(lambda) on x0, 1 / alpha^2 on eps.
    return 1 + jnp.exp(logsnr if prediction == 'x0' else -logsnr)
  if prediction == 'x0':
    return 0.5 * density * math.exp(bias) * jax.nn.sigmoid(logsnr - bias)
  weight = 0.5 * density * jax.nn.sigmoid(bias - logsnr)
  return weight * jax.nn.sigmoid(logsnr) if prediction == 'v' else weight


def per_image(values: Array, like: Array) -> Array:
  """[b] -> [b, 1, ...], to broadcast over images or clips."""
  return values.reshape(-1, *(1,) * (like.ndim - 1))


@dataclasses.dataclass(frozen=True)
class DiffusionObjective(LoopedObjective):
  """Weighted mean squared error at every trained exit.

  Attributes:
    schedule: log-SNR over time.
    prediction: how the model's output is read, 'v', 'x0' or 'eps'.
    sigmoid_bias: b of the sigmoid weighting; None is plain v-MSE.
    label_dropout: probability of the null class.
    num_classes: id of the null class.
  """

  schedule: CosineSchedule
  prediction: str
  sigmoid_bias: float | None
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
    target = {'x0': x, 'eps': eps, 'v': alpha * eps - sigma * x}[
      self.prediction
    ]
    weight = loss_weight(
      self.prediction, logsnr, self.schedule.density(t), self.sigmoid_bias
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
      inputs=(z, t, labels),
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
    schedule=CosineSchedule(o.logsnr_min, o.logsnr_max, o.logsnr_shift),
    prediction=o.prediction,
    sigmoid_bias=o.sigmoid_bias if o.weighting == 'sigmoid' else None,
    label_dropout=o.label_dropout,
    num_classes=config.data.num_classes,
  )
