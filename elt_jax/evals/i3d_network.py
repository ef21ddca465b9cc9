"""Layers and blocks of FVD's I3D, and the shapes of its arrays.

Names are those of the PyTorch file; see `evals.i3d`.
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

# (in, out of each branch: 1x1; 1x1 before 3x3, and 3x3, twice; after the pool).
_MIXED = {
  'Mixed_3b': (192, (64, 96, 128, 16, 32, 32)),
  'Mixed_3c': (256, (128, 128, 192, 32, 96, 64)),
  'Mixed_4b': (480, (192, 96, 208, 16, 48, 64)),
  'Mixed_4c': (512, (160, 112, 224, 24, 64, 64)),
  'Mixed_4d': (512, (128, 128, 256, 24, 64, 64)),
  'Mixed_4e': (512, (112, 144, 288, 32, 64, 64)),
  'Mixed_4f': (528, (256, 160, 320, 32, 128, 128)),
  'Mixed_5b': (832, (256, 160, 320, 32, 128, 128)),
  'Mixed_5c': (832, (384, 192, 384, 48, 128, 128)),
}
CLASSES = 400


# In full float32 on every device: rounded products move FVD.
@jax.default_matmul_precision('highest')
def apply(params: dict[str, Any], x: Array) -> Array:
  """[n, f, 224, 224, 3] in [-1, 1], f at least 9 -> logits [n, 400].

  Args:
    params: `folded`.
    x: clips.
  """
  unit = functools.partial(_unit, params)
  x = _max_pool(unit('Conv3d_1a_7x7', x, 2), (1, 3, 3), (1, 2, 2))
  x = unit('Conv3d_2c_3x3', unit('Conv3d_2b_1x1', x))
  x = _max_pool(x, (1, 3, 3), (1, 2, 2))
  for name in _MIXED:
    if name == 'Mixed_4b':
      x = _max_pool(x, (3, 3, 3), (2, 2, 2))
    elif name == 'Mixed_5b':
      x = _max_pool(x, (2, 2, 2), (2, 2, 2))
    x = _mixed(unit, name, x)
  # The mean over 7 x 7 places and every two moments, and then over time.
  x = x.mean((2, 3))
  x = ((x[:, :-1] + x[:, 1:]) / 2).mean(1)
  return x @ params['logits.kernel'] + params['logits.bias']


def folded(params: Params) -> dict[str, np.ndarray]:
  """Kernels [t, h, w, in, out] and biases, batch norm (eps 1e-3) taken in."""
  found = {
    'logits.kernel': params['logits.conv3d.weight'].reshape(CLASSES, -1).T,
    'logits.bias': params['logits.conv3d.bias'],
  }
  for name, _ in _units():
    kernel = params[f'{name}.conv3d.weight'].transpose(2, 3, 4, 1, 0)
    found[f'{name}.kernel'], found[f'{name}.bias'] = weights.folded(
      params, f'{name}.bn', kernel
    )
  return found


def _unit(params: dict[str, Any], name: str, x: Array, stride: int = 1):
  """A convolution, its batch norm and ReLU."""
  y = jax.lax.conv_general_dilated(
    x,
    params[f'{name}.kernel'],
    (stride,) * 3,
    'SAME',
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )
  return jax.nn.relu(y + params[f'{name}.bias'])


def _max_pool(x: Array, size: tuple[int, ...], strides: tuple[int, ...]):
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, *size, 1), (1, *strides, 1), 'SAME'
  )


def _mixed(unit: Any, name: str, x: Array) -> Array:
  """Branches of units, side by side."""
  return jnp.concatenate(
    [
      unit(f'{name}.b0', x),
      unit(f'{name}.b1b', unit(f'{name}.b1a', x)),
      unit(f'{name}.b2b', unit(f'{name}.b2a', x)),
      unit(f'{name}.b3b', _max_pool(x, (3, 3, 3), (1, 1, 1))),
    ],
    -1,
  )


# ---- What a file must hold ---------------------------------------------------


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every array's name and shape, as PyTorch has it."""
  for name, shape in _units():
    yield f'{name}.conv3d.weight', shape
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      yield f'{name}.bn.{part}', shape[:1]
  yield 'logits.conv3d.weight', (CLASSES, 1024, 1, 1, 1)
  yield 'logits.conv3d.bias', (CLASSES,)


def _units() -> Iterator[tuple[str, tuple[int, ...]]]:
  """(name, (out, in, frames, height, width)) of every unit with a norm."""
  yield 'Conv3d_1a_7x7', (64, 3, 7, 7, 7)
  yield 'Conv3d_2b_1x1', (64, 64, 1, 1, 1)
  yield 'Conv3d_2c_3x3', (192, 64, 3, 3, 3)
  for block, (before, (b0, b1a, b1b, b2a, b2b, b3b)) in _MIXED.items():
    yield f'{block}.b0', (b0, before, 1, 1, 1)
    yield f'{block}.b1a', (b1a, before, 1, 1, 1)
    yield f'{block}.b1b', (b1b, b1a, 3, 3, 3)
    yield f'{block}.b2a', (b2a, before, 1, 1, 1)
    yield f'{block}.b2b', (b2b, b2a, 3, 3, 3)
    yield f'{block}.b3b', (b3b, before, 1, 1, 1)
