"""Flax's layers with their parameters' axes named for sharding; patches."""

from collections.abc import Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Axes = tuple[str | None, str | None]


def conv(
  features: int,
  kernel: Sequence[int],
  axes: Axes = (None, 'embed'),
  use_bias: bool = True,
  dtype: Any = jnp.float32,
) -> nn.Conv:
  """SAME convolution of stride 1; its kernel names (input, output) axes."""
  return nn.Conv(
    features,
    kernel,
    conv_general_dilated=_conv,
    kernel_init=nn.with_partitioning(
      nn.initializers.lecun_normal(), (*[None] * len(kernel), *axes)
    ),
    bias_init=nn.with_partitioning(nn.initializers.zeros_init(), axes[1:]),
    use_bias=use_bias,
    dtype=dtype,
  )


def _conv(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
  """`lax.conv_general_dilated`, by whichever way is fast where it runs."""
  whole = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, *args, **options
  )
  if x.ndim < 5:
    return whole(x, kernel)
  return jax.lax.platform_dependent(
    x, kernel, cpu=conv_by_frames, default=whole
  )


def conv_by_frames(x: Array, kernel: Array) -> Array:
  """SAME convolution of clips as one of images, of stride 1.

  Each frame is convolved together with its neighbours, which join its
  channels: XLA has no fast convolution over three axes for the CPU, and this
  is three to five times as fast there.

  Args:
    x: [b, f, h, w, c].
    kernel: [kf, kh, kw, c, d], of odd sides.
  """
  b, f, h, w, c = x.shape
  taps, *window, _, d = kernel.shape
  if taps > 1:
    beside = taps // 2
    x = jnp.pad(x, ((0, 0), (beside, beside), (0, 0), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, i : i + f] for i in range(taps)], -1)
  y = jax.lax.conv_general_dilated(
    x.reshape(b * f, h, w, taps * c),
    jnp.moveaxis(kernel, 0, 2).reshape(*window, taps * c, d),
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y.reshape(b, f, h, w, d)


def group_norm(groups: int, dtype: Any, local: bool = False) -> nn.GroupNorm:
  """GroupNorm of `groups` groups, epsilon 1e-6, statistics in float32.

  They are of all positions of an example or, if `local`, of each by itself.
  """
  return nn.GroupNorm(
    groups,
    reduction_axes=-1 if local else None,
    dtype=dtype,
    scale_init=nn.with_partitioning(nn.initializers.ones_init(), ('embed',)),
    bias_init=nn.with_partitioning(nn.initializers.zeros_init(), ('embed',)),
  )


def dense(features: int, axes: Axes, dtype: Any) -> nn.Dense:
  """Dense layer whose kernel names its (input, output) axes."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), axes),
    bias_init=nn.with_partitioning(nn.initializers.zeros_init(), axes[1:]),
  )


def space_to_depth(x: Array, patch: Sequence[int]) -> Array:
  """[b, (f,) h, w, c] -> [b, (f/pf,) h/ph, w/pw, (pf) ph pw c]."""
  b, *sides, c = x.shape
  split = [n for side, p in zip(sides, patch) for n in (side // p, p)]
  x = x.reshape(b, *split, c)
  outer, inner = range(1, x.ndim - 1, 2), range(2, x.ndim - 1, 2)
  x = x.transpose(0, *outer, *inner, x.ndim - 1)
  return x.reshape(*x.shape[: len(sides) + 1], -1)


def depth_to_space(x: Array, patch: Sequence[int]) -> Array:
  """The inverse of `space_to_depth`."""
  b, *sides, _ = x.shape
  x = x.reshape(b, *sides, *patch, -1)
  n = len(sides)
  pairs = [axis for i in range(1, n + 1) for axis in (i, i + n)]
  x = x.transpose(0, *pairs, x.ndim - 1)
  whole = [side * p for side, p in zip(sides, patch)]
  return x.reshape(b, *whole, -1)


def patches_to_waves(x: Array, patch: Sequence[int]) -> Array:
  """`space_to_depth`, its channels changed to weighted DCT coefficients.

  Natural coordinates of a patch: each wave (the orthonormal DCT-II along every
  axis) varies on its own, so that Adam, which scales each coordinate by itself,
  does not learn the mean of every patch long before anything else. The weight
  1 + k of a wave, k the sum of its frequency indices, makes up for the fine
  waves' small size. Patches of one pixel are left as they are.
  """
  waves, weight = _waves(tuple(patch))
  deep = space_to_depth(x, patch)
  channels = deep.reshape(*deep.shape[:-1], len(weight), -1)
  out = jnp.einsum(
    'kp,...pc->...kc', waves * weight[:, None], channels, precision='highest'
  )
  return out.reshape(deep.shape)


def waves_to_patches(x: Array, patch: Sequence[int]) -> Array:
  """The inverse of `patches_to_waves`."""
  waves, weight = _waves(tuple(patch))
  channels = x.reshape(*x.shape[:-1], len(weight), -1)
  out = jnp.einsum(
    'kp,...kc->...pc', waves / weight[:, None], channels, precision='highest'
  )
  return depth_to_space(out.reshape(x.shape), patch)


@functools.cache
def _waves(patch: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """(orthonormal DCT-II [k, p] of the p pixels of a patch, weights [k])."""
  waves, index = np.ones((1, 1)), np.zeros(1)
  for n in patch:
    k, place = np.arange(n)[:, None], np.arange(n) + 0.5
    along = np.cos(np.pi * k * place / n) * math.sqrt(2 / n)
    along[0] /= math.sqrt(2)
    waves = np.kron(waves, along)
    index = np.add.outer(index, np.arange(n)).reshape(-1)
  return waves.astype(np.float32), (1 + index).astype(np.float32)
