"""Layers and blocks of FID's Inception-v3, and the shapes of its arrays.

Names are those of the PyTorch file; see `evals.inception`.
"""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.evals import weights

Array = jax.Array
Params = dict[str, np.ndarray]

_SPATIAL = 7  # Channels of Mixed_6d.branch1x1 that sFID looks at.


# In full float32 on every device: rounded products move FID.
@jax.default_matmul_precision('highest')
def apply(params: dict[str, Any], x: Array) -> tuple[Array, Array, Array]:
  """Pool, spatial features and probabilities; see `inception.Features`.

  Args:
    params: `folded`.
    x: [n, 299, 299, 3] in [-1, 1].
  """
  conv = functools.partial(_conv, params)
  for name, stride, padding in (
    ('Conv2d_1a_3x3', 2, 'VALID'),
    ('Conv2d_2a_3x3', 1, 'VALID'),
    ('Conv2d_2b_3x3', 1, 'SAME'),
  ):
    x = conv(name, x, stride, padding)
  x = conv('Conv2d_3b_1x1', _max_pool(x))
  x = _max_pool(conv('Conv2d_4a_3x3', x, padding='VALID'))
  for name in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
    x = _block_a(conv, name, x)
  x = _block_b(conv, 'Mixed_6a', x)
  for name in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
    if name == 'Mixed_6d':
      spatial = conv(f'{name}.branch1x1', x)[..., :_SPATIAL]
    x = _block_c(conv, name, x)
  x = _block_d(conv, 'Mixed_7a', x)
  x = _block_e(conv, 'Mixed_7b', x, _mean_pool)
  x = _block_e(conv, 'Mixed_7c', x, _same_max_pool)
  pool = x.mean((1, 2))
  # Without its bias, as OpenAI's improved-gan and guided-diffusion take it.
  probabilities = jax.nn.softmax(pool @ params['fc.weight'])
  return pool, spatial.reshape(len(x), -1), probabilities


def folded(params: Params) -> dict[str, np.ndarray]:
  """Kernels [h, w, in, out] and biases, batch norm (eps 1e-3) taken in."""
  found = {'fc.weight': params['fc.weight'].T}
  for key in params:
    if not key.endswith('.conv.weight'):
      continue
    name = key.removesuffix('.conv.weight')
    kernel = params[key].transpose(2, 3, 1, 0)
    found[f'{name}.kernel'], found[f'{name}.bias'] = weights.folded(
      params, f'{name}.bn', kernel
    )
  return found


def _conv(
  params: dict[str, Any],
  name: str,
  x: Array,
  stride: int = 1,
  padding: str = 'SAME',
) -> Array:
  y = jax.lax.conv_general_dilated(
    x,
    params[f'{name}.kernel'],
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return jax.nn.relu(y + params[f'{name}.bias'])


def _pool(x: Array, start: float, reduce: Any, stride: int, padding: str):
  window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
  return jax.lax.reduce_window(x, start, reduce, window, strides, padding)


def _max_pool(x: Array) -> Array:
  return _pool(x, -jnp.inf, jax.lax.max, 2, 'VALID')


def _same_max_pool(x: Array) -> Array:
  return _pool(x, -jnp.inf, jax.lax.max, 1, 'SAME')


def _mean_pool(x: Array) -> Array:
  """Padding does not count."""
  ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  count = _pool(ones, 0.0, jax.lax.add, 1, 'SAME')
  return _pool(x, 0.0, jax.lax.add, 1, 'SAME') / count


# ---- Blocks: branches of convolutions, side by side --------------------------


def _in_turn(conv: Any, name: str, x: Array, *parts: str) -> Array:
  for part in parts:
    x = conv(f'{name}.{part}', x)
  return x


def _block_a(conv: Any, name: str, x: Array) -> Array:
  chain = functools.partial(_in_turn, conv, name, x)
  return jnp.concatenate(
    [
      chain('branch1x1'),
      chain('branch5x5_1', 'branch5x5_2'),
      chain('branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'),
      conv(f'{name}.branch_pool', _mean_pool(x)),
    ],
    -1,
  )


def _block_b(conv: Any, name: str, x: Array) -> Array:
  double = _in_turn(conv, name, x, 'branch3x3dbl_1', 'branch3x3dbl_2')
  return jnp.concatenate(
    [
      conv(f'{name}.branch3x3', x, 2, 'VALID'),
      conv(f'{name}.branch3x3dbl_3', double, 2, 'VALID'),
      _max_pool(x),
    ],
    -1,
  )


def _block_c(conv: Any, name: str, x: Array) -> Array:
  chain = functools.partial(_in_turn, conv, name, x)
  return jnp.concatenate(
    [
      chain('branch1x1'),
      chain(*(f'branch7x7_{i}' for i in range(1, 4))),
      chain(*(f'branch7x7dbl_{i}' for i in range(1, 6))),
      conv(f'{name}.branch_pool', _mean_pool(x)),
    ],
    -1,
  )


def _block_d(conv: Any, name: str, x: Array) -> Array:
  chain = functools.partial(_in_turn, conv, name, x)
  wide = chain(*(f'branch7x7x3_{i}' for i in range(1, 4)))
  return jnp.concatenate(
    [
      conv(f'{name}.branch3x3_2', chain('branch3x3_1'), 2, 'VALID'),
      conv(f'{name}.branch7x7x3_4', wide, 2, 'VALID'),
      _max_pool(x),
    ],
    -1,
  )


def _block_e(conv: Any, name: str, x: Array, pool: Any) -> Array:
  chain = functools.partial(_in_turn, conv, name, x)
  single = chain('branch3x3_1')
  double = chain('branch3x3dbl_1', 'branch3x3dbl_2')
  return jnp.concatenate(
    [
      chain('branch1x1'),
      conv(f'{name}.branch3x3_2a', single),
      conv(f'{name}.branch3x3_2b', single),
      conv(f'{name}.branch3x3dbl_3a', double),
      conv(f'{name}.branch3x3dbl_3b', double),
      conv(f'{name}.branch_pool', pool(x)),
    ],
    -1,
  )


# ---- What a file must hold ---------------------------------------------------


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every array's name and shape, as PyTorch has it."""
  for name, (out, before, height, width) in _convolutions():
    yield f'{name}.conv.weight', (out, before, height, width)
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      yield f'{name}.bn.{part}', (out,)
  yield 'fc.weight', (1008, 2048)


def _convolutions() -> Iterator[tuple[str, tuple[int, int, int, int]]]:
  """(name, (out, in, height, width)) of every convolution."""
  stem = (
    ('Conv2d_1a_3x3', (32, 3, 3, 3)),
    ('Conv2d_2a_3x3', (32, 32, 3, 3)),
    ('Conv2d_2b_3x3', (64, 32, 3, 3)),
    ('Conv2d_3b_1x1', (80, 64, 1, 1)),
    ('Conv2d_4a_3x3', (192, 80, 3, 3)),
  )
  yield from stem
  for name, n, pooled in (('5b', 192, 32), ('5c', 256, 64), ('5d', 288, 64)):
    yield from _named(
      f'Mixed_{name}',
      branch1x1=(64, n, 1, 1),
      branch5x5_1=(48, n, 1, 1),
      branch5x5_2=(64, 48, 5, 5),
      branch3x3dbl_1=(64, n, 1, 1),
      branch3x3dbl_2=(96, 64, 3, 3),
      branch3x3dbl_3=(96, 96, 3, 3),
      branch_pool=(pooled, n, 1, 1),
    )
  yield from _named(
    'Mixed_6a',
    branch3x3=(384, 288, 3, 3),
    branch3x3dbl_1=(64, 288, 1, 1),
    branch3x3dbl_2=(96, 64, 3, 3),
    branch3x3dbl_3=(96, 96, 3, 3),
  )
  for name, c in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
    yield from _named(
      f'Mixed_{name}',
      branch1x1=(192, 768, 1, 1),
      branch7x7_1=(c, 768, 1, 1),
      branch7x7_2=(c, c, 1, 7),
      branch7x7_3=(192, c, 7, 1),
      branch7x7dbl_1=(c, 768, 1, 1),
      branch7x7dbl_2=(c, c, 7, 1),
      branch7x7dbl_3=(c, c, 1, 7),
      branch7x7dbl_4=(c, c, 7, 1),
      branch7x7dbl_5=(192, c, 1, 7),
      branch_pool=(192, 768, 1, 1),
    )
  yield from _named(
    'Mixed_7a',
    branch3x3_1=(192, 768, 1, 1),
    branch3x3_2=(320, 192, 3, 3),
    branch7x7x3_1=(192, 768, 1, 1),
    branch7x7x3_2=(192, 192, 1, 7),
    branch7x7x3_3=(192, 192, 7, 1),
    branch7x7x3_4=(192, 192, 3, 3),
  )
  for name, n in (('7b', 1280), ('7c', 2048)):
    yield from _named(
      f'Mixed_{name}',
      branch1x1=(320, n, 1, 1),
      branch3x3_1=(384, n, 1, 1),
      branch3x3_2a=(384, 384, 1, 3),
      branch3x3_2b=(384, 384, 3, 1),
      branch3x3dbl_1=(448, n, 1, 1),
      branch3x3dbl_2=(384, 448, 3, 3),
      branch3x3dbl_3a=(384, 384, 1, 3),
      branch3x3dbl_3b=(384, 384, 3, 1),
      branch_pool=(192, n, 1, 1),
    )


def _named(block: str, **convolutions: tuple[int, int, int, int]):
  for name, shape in convolutions.items():
    yield f'{block}.{name}', shape
