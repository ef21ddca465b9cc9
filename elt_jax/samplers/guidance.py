"""Classifier-free guidance in the convention u + s (c - u).

s = 1 is the conditional model, s = 0 the unconditional one (Ho and Salimans,
arXiv 2207.12598, with w = s - 1). Guidance may be limited to an interval of
noise levels (Kynkaanniemi et al., arXiv 2404.07724): outside it the
unconditional pass is not run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def guided(
  model: Callable[[Array, Array], Array],
  z: Array,
  labels: Array,
  null_label: int,
  scale: Array,
  active: Array,
) -> Array:
  """One guided evaluation.

  Args:
    model: (z, labels) -> output, any batch size.
    z: [b, ...] state.
    labels: int32 [b].
    null_label: the class that stands for no condition.
    scale: s, traced scalar.
    active: traced bool scalar; where false the output is the conditional one.

  Returns:
    [b, ...] output.
  """

  def both(z, labels):
    # Interleaved, so that both halves of a pair stay on one device.
    pair = lambda c, u: jnp.stack([c, u], 1).reshape(-1, *c.shape[1:])
    out = model(pair(z, z), pair(labels, jnp.full_like(labels, null_label)))
    out = out.reshape(-1, 2, *out.shape[1:])
    conditional, unconditional = out[:, 0], out[:, 1]
    return unconditional + scale * (conditional - unconditional)

  return jax.lax.cond(active & (scale != 1), both, model, z, labels)
