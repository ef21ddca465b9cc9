"""Layers shared by every backbone.

Each parameter is declared once, with its shape, initialiser and logical axes;
`elt_jax.sharding` maps the logical axes onto a mesh. Parameters are float32;
`dtype` is the dtype of the computation.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.tokenizers.layers import depth_to_space, space_to_depth

Array = jax.Array
# DiT's initialisation: Xavier uniform over the flattened kernel.
xavier = nn.initializers.xavier_uniform
zeros = nn.initializers.zeros_init()


class Dense(nn.Module):
  """Linear map over the last `in_dims` axes.

  All leading axes are flattened into one before the product: on CPU the
  gradient of a [b, s, d] x [d, n] product runs at less than half the speed of
  the same product on [b*s, d].

  Attributes:
    features: sizes of the output axes.
    axes: logical names of the kernel's axes, inputs then outputs.
    in_dims: how many trailing input axes are contracted.
    kernel_init: initialiser; None is Xavier uniform over (inputs, outputs).
    dtype: dtype of the computation and of the output.
  """

  features: tuple[int, ...]
  axes: tuple[str | None, ...]
  in_dims: int = 1
  kernel_init: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    lead, contracted = x.shape[: -self.in_dims], x.shape[-self.in_dims :]
    shape = (*contracted, *self.features)
    init = self.kernel_init or xavier(
      in_axis=tuple(range(self.in_dims)),
      out_axis=tuple(range(self.in_dims, len(shape))),
    )
    kernel = self.param('kernel', nn.with_partitioning(init, self.axes), shape)
    bias = self.param(
      'bias',
      nn.with_partitioning(zeros, self.axes[self.in_dims :]),
      self.features,
    )
    rows, columns = math.prod(contracted), math.prod(self.features)
    y = jnp.dot(
      x.astype(self.dtype).reshape(-1, rows),
      kernel.astype(self.dtype).reshape(rows, columns),
    )
    y = y + bias.astype(self.dtype).reshape(columns)
    return y.reshape(*lead, *self.features)


class Attention(nn.Module):
  """Bidirectional self-attention, [b, s, d] -> [b, s, d]; float32 softmax.

  Attributes:
    num_heads: must divide d.
    dtype: dtype of the computation.
    kernel_init: of both projections; None is Xavier uniform.
    dropout: rate on the attention weights.
  """

  num_heads: int
  dtype: Any = jnp.float32
  kernel_init: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h: Array, keys: Array | None = None) -> Array:
    """`keys` [b], one per example, draw the dropout; None is off."""
    width = h.shape[-1]
    head_dim = width // self.num_heads
    qkv = Dense(
      (3, self.num_heads, head_dim),
      ('embed', None, 'heads', None),
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='qkv',
    )(h)
    q, k, v = (qkv[:, :, i] for i in range(3))  # each [b, s, k, d/k]
    if self.dropout and keys is not None:
      scores = jnp.einsum(
        'bqkd,bskd->bkqs', q, k, preferred_element_type=jnp.float32
      )
      weights = nn.softmax(scores / math.sqrt(head_dim))
      weights = dropout(weights, self.dropout, keys, 2).astype(self.dtype)
      out = jnp.einsum('bkqs,bskd->bqkd', weights, v)
    else:
      out = jax.nn.dot_product_attention(q, k, v)
    return Dense(
      (width,),
      ('heads', None, 'embed'),
      in_dims=2,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='out',
    )(out)


class Mlp(nn.Module):
  """Dense, tanh-approximated GELU, Dense: [b, s, d] -> [b, s, d]."""

  hidden: int
  dtype: Any = jnp.float32
  kernel_init: Any = None

  @nn.compact
  def __call__(self, h: Array) -> Array:
    width = h.shape[-1]
    dense = lambda size, axes, name: Dense(
      (size,), axes, 1, self.kernel_init, self.dtype, name=name
    )
    h = dense(self.hidden, ('embed', 'mlp'), 'in')(h)
    h = nn.gelu(h, approximate=True)
    return dense(width, ('mlp', 'embed'), 'out')(h)


def dropout(x: Array, rate: float, keys: Array | None, site: int) -> Array:
  """Zeroes a share `rate` of `x` and scales the rest up.

  Args:
    x: [b, ...].
    rate: in [0, 1).
    keys: [b], one per example; None leaves `x` as it is.
    site: tells the uses of one key apart.
  """
  if keys is None or not rate:
    return x
  draw = lambda key: jax.random.bernoulli(
    jax.random.fold_in(key, site), 1 - rate, x.shape[1:]
  )
  return jnp.where(jax.vmap(draw)(keys), x / (1 - rate), 0).astype(x.dtype)


def layer_norm(h: Array, dtype: Any) -> Array:
  """LayerNorm without scale or bias, epsilon 1e-6, statistics in float32."""
  h = h.astype(jnp.float32)
  mean = jnp.mean(h, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(h - mean), axis=-1, keepdims=True)
  return ((h - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(dtype)


def sinusoids(
  positions: Any, width: int, max_period: float = 10_000.0, xp: Any = jnp
) -> Any:
  """[n] positions -> [n, width] float32: cosines, then sines.

  Frequencies fall geometrically from 1 to 1/max_period, as in DiT's timestep
  embedding. `xp` is jax.numpy, or numpy for constants.
  """
  half = width // 2
  frequencies = np.exp(-math.log(max_period) * np.arange(half) / half)
  angles = xp.asarray(positions, np.float32)[:, None] * frequencies[None]
  return xp.concatenate([xp.cos(angles), xp.sin(angles)], -1).astype(np.float32)


def position_table(grid: tuple[int, int, int], width: int) -> np.ndarray:
  """Fixed sin-cos positions of a token grid, [f*h*w, width] float32.

  For images (f = 1) this is DiT's table: half the channels for the column
  index, then half for the row index, each [sin, cos]. For video the frame
  index takes the last third (rounded down to even).

  Raises:
    ValueError: if `width` does not give whole waves to each axis.
  """
  frames, rows, columns = np.meshgrid(*map(np.arange, grid), indexing='ij')
  axes = [columns, rows] if grid[0] == 1 else [columns, rows, frames]
  share = 2 * (width // (2 * len(axes)))
  if width % 4:
    raise ValueError(f'model.width must be a multiple of 4, got {width}.')
  tables = []
  for index, axis in enumerate(axes):
    # The first axis takes what an uneven split leaves over.
    size = width - share * (len(axes) - 1) if index == 0 else share
    waves = sinusoids(axis.reshape(-1), size, xp=np)
    tables.append(
      np.concatenate([waves[:, size // 2 :], waves[:, : size // 2]], -1)
    )
  return np.concatenate(tables, -1)


def patchify(x: Array, patch: tuple[int, int, int]) -> Array:
  """[b, f, h, w, c] -> [b, s, pf*ph*pw*c], tokens in (f, h, w) order."""
  deep = space_to_depth(x, patch)
  return deep.reshape(len(x), -1, deep.shape[-1])


def unpatchify(
  tokens: Array, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> Array:
  """The inverse of `patchify`: [b, s, pf*ph*pw*c] -> [b, f, h, w, c]."""
  return depth_to_space(tokens.reshape(len(tokens), *grid, -1), patch)
