"""Any number of samples through one compiled program of a fixed batch size."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from elt_jax import sharding
from elt_jax.keys import random_stream
from elt_jax.mesh import batch_shards
from elt_jax.models.elt import ELT
from elt_jax.samplers import build_sampler
from elt_jax.tokenizers.pretrained import Tokenizer


class Draw:
  """Draws samples of a model; compiled once for every loop count.

  Attributes:
    num_steps: K.
    tokenizer: what decodes the samples of a masked model, or None.
  """

  def __init__(
    self,
    config: Any,
    model: ELT,
    mesh: Mesh,
    batch_size: int | None = None,
    tokenizer: Tokenizer | None = None,
  ):
    """Prepares to draw `batch_size` samples at a time.

    Args:
      config: experiment config.
      model: its model, built for `mesh`.
      mesh: devices over which a batch is split.
      batch_size: None takes config.sample.batch_size; rounded up to a
        multiple of the devices.
      tokenizer: of a masked model, to turn tokens into images; None where the
        model draws images itself.
    """
    s = config.sample
    self._mesh = mesh
    shards = batch_shards(mesh)
    self._batch_size = -(-(batch_size or s.batch_size) // shards) * shards
    self._guidance = s.guidance
    self._interval = (s.guidance_low, s.guidance_high)
    self._num_classes = config.data.num_classes
    self._guidable = config.objective.label_dropout > 0
    self._sample = jax.jit(build_sampler(config, model))
    self.tokenizer = tokenizer
    self.num_steps = s.num_steps

  def __call__(
    self,
    params: Any,
    labels: np.ndarray,
    loops: int | list[int],
    seed: int,
    guidance: float | None = None,
    known: np.ndarray | None = None,
  ) -> np.ndarray:
    """One sample per label.

    Args:
      params: the moving average of a trained model.
      labels: int [n], in [0, num_classes).
      loops: loops at every step, or one number per step.
      seed: sample i depends on (seed, i, labels[i], loops) and no other i.
      guidance: scale s; None takes config.sample.guidance.
      known: int32 [n, *grid], for masked models: tokens to keep, -1 where they
        are to be drawn.

    Returns:
      float32 [n, (f,) h, w, c] in the range of the training data.

    Raises:
      ValueError: on labels, loops, guidance or known tokens out of range, or
        a schedule that is not of one loop count per step.
    """
    labels = np.asarray(labels, np.int32)
    if labels.min() < 0 or labels.max() >= self._num_classes:
      raise ValueError(
        f'Labels must be in 0..{self._num_classes - 1}, got '
        f'{labels.min()}..{labels.max()}.'
      )
    loops = np.asarray(loops, np.int32)
    if loops.min() < 1 or loops.shape not in ((), (self.num_steps,)):
      raise ValueError(
        'loops must be one number or one per sampling step '
        f'({self.num_steps}), each at least 1; got {loops.tolist()}.'
      )
    loops = np.broadcast_to(loops, (self.num_steps,))
    scale = self._guidance if guidance is None else guidance
    if not 0 <= scale < float('inf'):
      raise ValueError(f'guidance must be a number of at least 0, got {scale}.')
    if scale != 1 and not self._guidable:
      raise ValueError(
        f'guidance = {scale}: this model was trained without dropped labels '
        'and cannot be guided; use 1.'
      )
    if known is not None:
      self._check_known(known, len(labels))
    batched = sharding.batch_sharding(self._mesh)
    out, extra = [], {}
    for start in range(0, len(labels), self._batch_size):
      index = np.arange(start, start + self._batch_size, dtype=np.int32)
      # The last batch is filled up by repeating the last label.
      place = np.minimum(index, len(labels) - 1)
      if known is not None:
        kept = known[place].astype(np.int32)
        extra = {'known': jax.device_put(kept, batched)}
      samples = self._sample(
        params,
        random_stream(seed, 'sample'),
        jax.device_put(labels[place], batched),
        jnp.asarray(loops),
        jnp.float32(scale),
        jnp.asarray(self._interval, jnp.float32),
        jax.device_put(index, batched),
        **extra,
      )
      out.append(self.tokenizer.decode(samples) if self.tokenizer else samples)
    return np.concatenate(jax.device_get(out))[: len(labels)]

  def _check_known(self, known: np.ndarray, count: int) -> None:
    if self.tokenizer is None:
      raise ValueError('Known tokens are for masked models with a tokenizer.')
    shape = (count, *self.tokenizer.grid)
    codes = self.tokenizer.config.tokenizer.codebook_size
    low, high = int(known.min()), int(known.max())
    if known.shape != shape or low < -1 or high >= codes:
      raise ValueError(
        f'known must be {shape} with values in -1..{codes - 1}, got '
        f'{known.shape} with {low}..{high}.'
      )
