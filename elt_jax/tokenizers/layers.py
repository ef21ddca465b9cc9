"""Flax's layers with their parameters' axes named for sharding."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

Axes = tuple[str | None, str | None]


def conv(
  features: int,
  kernel: Sequence[int],
  axes: Axes = (None, 'embed'),
  **options: Any,
) -> nn.Conv:
  """SAME convolution whose kernel names its (input, output) axes."""
  return nn.Conv(
    features,
    kernel,
    kernel_init=nn.with_partitioning(
      nn.initializers.lecun_normal(), (*[None] * len(kernel), *axes)
    ),
    bias_init=nn.with_partitioning(nn.initializers.zeros_init(), axes[1:]),
    **options,
  )


def group_norm(groups: int, dtype: Any) -> nn.GroupNorm:
  """GroupNorm of `groups` groups, epsilon 1e-6, statistics in float32."""
  return nn.GroupNorm(
    groups,
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
