"""MaskGIT pieces: token embedding, BERT block, masked-token head.

After Devlin et al. (arXiv 1810.04805) as MaskGIT (arXiv 2202.04200) uses it:
post-LN blocks, learned positions, biases everywhere, a head tied to the token
table. Post-LN also bounds the state at the end of every loop; with pre-LN the
residual norm grows with the loops, and the last norm stands in the head.

Dropout draws from one key per example, so that a mask depends on the example
and not on how the batch is split.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from elt_jax.models import layers
from elt_jax.models.layers import Dense

Array = jax.Array
# Normal, cut at two standard deviations and not rescaled.
init = nn.initializers.truncated_normal(0.02)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=1e-12,
    dtype=dtype,
    scale_init=nn.with_partitioning(nn.initializers.ones_init(), ('embed',)),
    bias_init=nn.with_partitioning(layers.zeros, ('embed',)),
    name=name,
  )


class TokenEmbed(nn.Module):
  """ids -> (normed token + position [b, s, d], token table [v, d]).

  The table takes the place of a conditioning vector: the head needs it, the
  blocks do not.

  Attributes:
    vocabulary_size: v.
    length: s, the class token included.
    width: d.
    dropout: rate, in [0, 1).
    dtype: dtype of the computation.
  """

  vocabulary_size: int
  length: int
  width: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, ids: Array, keys: Array | None = None
  ) -> tuple[Array, Array]:
    """int32 [b, s] -> state in `dtype`, table in float32."""
    if ids.shape[1] != self.length:
      raise ValueError(
        f'The model was built for sequences of {self.length} tokens, the '
        f'class token included; got {ids.shape[1]}.'
      )
    table = self.param(
      'tokens',
      nn.with_partitioning(init, ('vocab', 'embed')),
      (self.vocabulary_size, self.width),
    )
    positions = self.param(
      'positions',
      nn.with_partitioning(init, (None, 'embed')),
      (self.length, self.width),
    )
    h = _norm(self.dtype, 'norm')(table[ids] + positions)
    return layers.dropout(h, self.dropout, keys, 0), table


class BertBlock(nn.Module):
  """One unique layer: attention and MLP, each with dropout and a norm.

  Attributes:
    width: d.
    num_heads: must divide d.
    mlp_ratio: hidden size of the MLP over d.
    norm: 'post', LN(h + F(h)), or 'pre', h + F(LN(h)).
    dropout: rate, of the attention weights and of both updates.
    dtype: dtype of the computation.
  """

  width: int
  num_heads: int
  mlp_ratio: float = 4.0
  norm: str = 'post'
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def condition(self, table: Array) -> None:
    """Nothing conditions a block: the class is a token of the sequence."""
    del table

  @nn.compact
  def __call__(
    self,
    h: Array,
    modulation: None = None,
    residual_scale: float = 1.0,
    keys: Array | None = None,
  ) -> Array:
    """[b, s, d] state -> [b, s, d]; `keys` [b] draw dropout, None is off."""
    del modulation
    attention = layers.Attention(
      self.num_heads, self.dtype, init, self.dropout, name='attention'
    )
    mlp = layers.Mlp(
      int(self.width * self.mlp_ratio), self.dtype, init, name='mlp'
    )
    updates = {
      'attention': functools.partial(attention, keys=keys),
      'mlp': mlp,
    }
    for site, (name, update) in enumerate(updates.items()):
      norm = _norm(self.dtype, f'{name}_norm')
      x = update(norm(h) if self.norm == 'pre' else h)
      h = h + residual_scale * layers.dropout(x, self.dropout, keys, site)
      h = norm(h) if self.norm == 'post' else h
    return h

  def parameters(self, h: Array, table: Array) -> Array:
    """Touches every parameter once, for `init`."""
    return self(h, self.condition(table))


class TokenHead(nn.Module):
  """Dense, GELU, norm, product with the token table, bias: the MLM head.

  Attributes:
    norm: 'pre' norms the state first, as its blocks did not.
    dtype: dtype of the computation.
  """

  norm: str = 'post'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Array, table: Array) -> Array:
    """[b, s, d], [v, d] -> float32 logits [b, s, v] over the vocabulary."""
    v, width = table.shape
    if self.norm == 'pre':
      h = _norm(self.dtype, 'norm')(h)
    h = Dense(
      (width,),
      ('embed', None),
      kernel_init=init,
      dtype=self.dtype,
      name='dense',
    )(h)
    h = _norm(self.dtype, 'dense_norm')(nn.gelu(h, approximate=True))
    bias = self.param(
      'bias', nn.with_partitioning(layers.zeros, ('vocab',)), (v,)
    )
    logits = jnp.dot(
      h.reshape(-1, width),
      table.astype(self.dtype).T,
      preferred_element_type=jnp.float32,
    )
    return (logits + bias).reshape(*h.shape[:-1], v)
