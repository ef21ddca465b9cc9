"""FID, sFID, IS, precision and recall from features of Inception."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

# Of OpenAI's guided-diffusion, evaluations/evaluator.py, whose numbers the
# field reports.
IS_SPLIT = 5000
NEIGHBOURS = 3


def inception_score(probabilities: np.ndarray, split: int = IS_SPLIT) -> float:
  """exp E KL(p(y|x) || p(y)), of each `split` samples; the mean of these.

  Salimans et al., arXiv 1606.03498.

  Args:
    probabilities: [n, classes], of samples in random order of their classes.
    split: samples of each; the last may have fewer.
  """
  p = np.asarray(probabilities, np.float64)
  scores = []
  for start in range(0, len(p), split):
    part = p[start : start + split]
    divergence = scipy.special.rel_entr(part, part.mean(0)).sum(1)
    scores.append(np.exp(divergence.mean()))
  return float(np.mean(scores))


def precision_recall(
  reference: np.ndarray, samples: np.ndarray, k: int = NEIGHBOURS
) -> tuple[float, float]:
  """Shares of samples among the reference, and of it among the samples.

  An example is among a set if it is as near to one of its members as that
  member's k-th neighbour in the set: Kynkaanniemi et al., arXiv 1904.06991.

  Args:
    reference: float32 [n, d].
    samples: float32 [m, d].
    k: the neighbour whose distance is the radius.

  Raises:
    ValueError: if a set has no k-th neighbours.
  """
  if min(len(reference), len(samples)) <= k:
    raise ValueError(
      f'Precision and recall need more than {k} examples of each, got '
      f'{len(reference)} and {len(samples)}.'
    )
  # Each goes to the device once: 50,000 take 400 MB.
  reference, samples = jnp.asarray(reference), jnp.asarray(samples)
  return (
    _share_among(samples, reference, _radii(reference, k)),
    _share_among(reference, samples, _radii(samples, k)),
  )


def _radii(x: jax.Array, k: int) -> jax.Array:
  """Squared distance of each to its k-th neighbour in the set."""
  return jnp.concatenate([_kth(rows, x, k) for rows in _blocks(x)])


def _share_among(x: jax.Array, others: jax.Array, radii: jax.Array) -> float:
  inside = [_any_within(rows, others, radii) for rows in _blocks(x)]
  return float(np.concatenate(inside).mean())


def _blocks(x: jax.Array, rows: int = 1024) -> list[jax.Array]:
  return [x[start : start + rows] for start in range(0, len(x), rows)]


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
  product = jnp.matmul(a, b.T, precision='highest')
  lengths = (a * a).sum(1)[:, None] + (b * b).sum(1)
  return jnp.maximum(lengths - 2 * product, 0)


@functools.partial(jax.jit, static_argnums=2)
def _kth(rows: jax.Array, x: jax.Array, k: int) -> jax.Array:
  # The nearest is the example itself.
  nearest, _ = jax.lax.top_k(-_squared_distances(rows, x), k + 1)
  return -nearest[:, k]


@jax.jit
def _any_within(
  rows: jax.Array, others: jax.Array, radii: jax.Array
) -> jax.Array:
  return (_squared_distances(rows, others) <= radii).any(1)
