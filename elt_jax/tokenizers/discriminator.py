"""The critic of the tokenizer's adversarial loss: a StyleGAN-like network.

After StyleGAN2 (Karras et al., arXiv 1912.04958): residual blocks that halve
every axis through a [1, 3, 3, 1] blur, leaky ReLU, no norms. For images and,
with three axes, for clips.
"""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from elt_jax.tokenizers.layers import conv, dense

Array = jax.Array
act = functools.partial(nn.leaky_relu, negative_slope=0.2)


def blur_down(x: Array) -> Array:
  """Halves every axis between batch and channels: [1, 3, 3, 1] / 8, stride 2.

  An axis of length 1 stays.
  """
  for axis in range(1, x.ndim - 1):
    if x.shape[axis] == 1:
      continue
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 2)  # One more than the taps need where the length is odd.
    padded = jnp.pad(x, pad)
    half = -(-x.shape[axis] // 2)
    taps = [
      jax.lax.slice_in_dim(padded, i, i + 2 * half - 1, 2, axis)
      for i in range(4)
    ]
    x = (taps[0] + 3 * taps[1] + 3 * taps[2] + taps[3]) / 8
  return x


class Discriminator(nn.Module):
  """[b, (f,) h, w, c] pixels in [0, 1] -> [b] logits, high for real.

  Attributes:
    filters: width of the first level.
    multipliers: width after each halving, times `filters`.
    dtype: dtype of the computation.
  """

  filters: int
  multipliers: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    rank = x.ndim - 2
    wide = functools.partial(conv, kernel=(3,) * rank, dtype=self.dtype)
    x = act(wide(self.filters)(2 * x - 1))
    for multiplier in self.multipliers:
      width = self.filters * multiplier
      y = act(wide(x.shape[-1])(x))
      y = act(wide(width)(blur_down(y)))
      skip = conv(width, (1,) * rank, use_bias=False, dtype=self.dtype)
      x = (skip(blur_down(x)) + y) / math.sqrt(2)
    width = x.shape[-1]
    x = act(wide(width)(x)).reshape(len(x), -1)
    x = act(dense(width, (None, 'embed'), self.dtype)(x))
    logits = dense(1, ('embed', None), self.dtype)(x)
    return logits[:, 0].astype(jnp.float32)
