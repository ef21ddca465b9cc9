"""Random keys: one stream per use of a seed, one key per example.

Keys are folded, never reused; what an example draws depends on its place in
the global batch and on nothing of how the batch is split.
"""

import jax

Array = jax.Array
# In the order of their introduction: the place of a use is part of its key.
USES = ('init', 'train', 'sample', 'update', 'refine')


def random_stream(seed: int, use: str) -> Array:
  """The key of one use of a seed, of `USES`."""
  number = USES.index(use)
  return jax.random.fold_in(jax.random.key(seed), number)


def per_example(key: Array, index: Array) -> Array:
  """One key for each int32 place in `index` [b]: keys [b]."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
