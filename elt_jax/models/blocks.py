"""DiT pieces: patch embedding with conditioning, adaLN-zero block, head.

After Peebles and Xie (arXiv 2212.09748). The zero-initialised gates make every
block the identity at the start of training, so at step 0 a model gives the
same output at every number of loops.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from elt_jax.models import layers
from elt_jax.models.layers import Dense

Array = jax.Array


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
  return h * (1 + scale[:, None]) + shift[:, None]


class DiTEmbed(nn.Module):
  """(x, t, labels) -> (tokens [b, s, d], conditioning [b, d]).

  Attributes:
    grid: (f, h, w) tokens along each axis; f = 1 for images.
    patch: (pf, ph, pw) pixels of a token along each axis.
    width: d.
    num_classes: label `num_classes` is the null class of guidance.
    dtype: dtype of the computation.
    time_scale: sinusoids are of this times t.
  """

  grid: tuple[int, int, int]
  patch: tuple[int, int, int]
  width: int
  num_classes: int
  dtype: Any = jnp.float32
  time_scale: float = 1000.0

  @nn.compact
  def __call__(self, x: Array, t: Array, labels: Array) -> tuple[Array, Array]:
    """Embeds a noisy input.

    Args:
      x: [b, h, w, c] image or [b, f, h, w, c] video, about unit scale.
      t: [b] time in [0, 1], as `Schedule.network_inputs` of the process gives
        it: of most, 0 is data and 1 is noise.
      labels: [b] int32 in [0, num_classes].

    Returns:
      The tokens in `dtype` and the conditioning vector in float32.
    """
    x = x[:, None] if x.ndim == 4 else x
    expected = tuple(g * p for g, p in zip(self.grid, self.patch))
    if x.shape[1:4] != expected:
      raise ValueError(
        f'The model was built for (frames, height, width) {expected}, '
        f'got {x.shape[1:4]}.'
      )
    tokens = layers.patchify(x, self.patch)
    h = Dense(
      (self.width,), ('patch', 'embed'), dtype=self.dtype, name='patch'
    )(tokens)
    h = h + layers.position_table(self.grid, self.width).astype(self.dtype)

    # DiT embeds integer steps of a 1000-step process. Its initialisation of
    # this path, normal(0.02), starts with a class signal so faint that short
    # runs never learn it; here time and class start at comparable, order-one
    # size.
    waves = layers.sinusoids(self.time_scale * t, 256)
    dense = functools.partial(
      Dense,
      (self.width,),
      (None, 'embed'),
      kernel_init=nn.initializers.lecun_normal(),
    )
    c = dense(name='t_out')(nn.silu(dense(name='t_in')(waves)))
    classes = self.param(
      'classes',
      nn.with_partitioning(nn.initializers.normal(0.5), (None, 'embed')),
      (self.num_classes + 1, self.width),
    )
    return h, c + classes[labels]


class DiTBlock(nn.Module):
  """One unique layer: attention and MLP, each modulated and gated by adaLN.

  What depends on the conditioning alone is computed once by `condition`,
  outside the loop: every loop reuses it.
  """

  width: int
  num_heads: int
  mlp_ratio: float = 4.0
  dtype: Any = jnp.float32

  def setup(self):
    self.adaln = Dense(
      (6, self.width),
      (None, None, 'embed'),
      kernel_init=layers.zeros,
      dtype=self.dtype,
    )
    self.attention = layers.Attention(self.num_heads, self.dtype)
    self.mlp = layers.Mlp(int(self.width * self.mlp_ratio), self.dtype)

  def condition(self, c: Array) -> Array:
    """[b, d] -> [b, 6, d]: shift, scale, gate for attention, then for MLP."""
    return self.adaln(nn.silu(c))

  def __call__(
    self, h: Array, modulation: Array, residual_scale: float = 1.0
  ) -> Array:
    """[b, s, d] state and [b, 6, d] modulation -> [b, s, d] state."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
      modulation[:, i] for i in range(6)
    )
    gate_a, gate_m = residual_scale * gate_a, residual_scale * gate_m
    normed = layers.layer_norm(h, self.dtype)
    update = self.attention(_modulate(normed, shift_a, scale_a))
    h = h + gate_a[:, None] * update
    normed = layers.layer_norm(h, self.dtype)
    update = self.mlp(_modulate(normed, shift_m, scale_m))
    return h + gate_m[:, None] * update

  def parameters(self, h: Array, c: Array) -> Array:
    """Touches every parameter once, for `init`."""
    return self(h, self.condition(c))


class LoopEmbedding(nn.Module):
  """loop index -> [d], zero-initialised; an ablation, absent from the paper."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, loop_index: Array) -> Array:
    waves = layers.sinusoids(jnp.asarray(loop_index)[None], self.width)
    return Dense(
      (self.width,),
      (None, 'embed'),
      kernel_init=layers.zeros,
      dtype=self.dtype,
      name='out',
    )(waves)[0]


class DiTHead(nn.Module):
  """Final adaLN and linear map back to pixels; shared by every exit."""

  grid: tuple[int, int, int]
  patch: tuple[int, int, int]
  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Array, c: Array) -> Array:
    """[b, s, d], [b, d] -> float32 prediction of the input's shape."""
    width = h.shape[-1]
    modulation = Dense(
      (2, width),
      (None, None, 'embed'),
      kernel_init=layers.zeros,
      dtype=self.dtype,
      name='adaln',
    )(nn.silu(c))
    h = layers.layer_norm(h, self.dtype)
    h = _modulate(h, modulation[:, 0], modulation[:, 1])
    pf, ph, pw = self.patch
    out = Dense(
      (pf * ph * pw * self.channels,),
      ('embed', 'patch'),
      kernel_init=layers.zeros,
      dtype=self.dtype,
      name='out',
    )(h)
    x = layers.unpatchify(out.astype(jnp.float32), self.grid, self.patch)
    return x[:, 0] if x.shape[1] == 1 else x
