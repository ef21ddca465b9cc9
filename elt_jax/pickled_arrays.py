"""Pickled trees of numpy arrays, read without running anything.

The names that numpy's arrays take stand for something that only keeps what it
is given; see `unpickling`.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any, ClassVar

import numpy as np

from elt_jax.unpickling import Refused, Unpickler, reading


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a pickled dict of dicts of arrays, by 'name/name/...'.

  Raises:
    ValueError: if the file is damaged, holds something else, or asks for a
      function that making arrays does not take.
  """
  path = pathlib.Path(path)
  with path.open('rb') as file, reading(path, 'pickle of arrays'):
    return _flat(_Unpickler(file).load(), '')


class _DType:
  """In place of numpy.dtype."""

  def __init__(self, name: str, *rest: Any):
    self.value = np.dtype(name)

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    self.value = self.value.newbyteorder(state[1])


class _Array:
  """In place of numpy.ndarray."""

  value: np.ndarray

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    _, shape, dtype, by_columns, data = state
    dtype = dtype.value
    if dtype.kind not in 'biuf' or not isinstance(data, bytes):
      raise Refused(f'it has arrays of {dtype}, and not of numbers.')
    if min(shape, default=0) < 0 or (
      math.prod(shape) * dtype.itemsize != len(data)
    ):
      raise Refused(f'{len(data)} bytes are no {dtype} of shape {shape}.')
    order = 'F' if by_columns else 'C'
    self.value = np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _reconstruct(*args: Any) -> _Array:
  """In place of numpy's; what the array is comes after it."""
  return _Array()


class _Unpickler(Unpickler):
  known: ClassVar = {
    ('numpy', 'dtype'): _DType,
    ('numpy', 'ndarray'): _Array,
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
  }


def _flat(found: Any, path: str) -> dict[str, np.ndarray]:
  if isinstance(found, _Array):
    return {path: found.value}
  if not isinstance(found, Mapping) or not all(
    isinstance(name, str) for name in found
  ):
    where = f' at {path}' if path else ''
    raise Refused(
      f'it holds a {type(found).__name__}{where}, and not arrays by name.'
    )
  flat = {}
  for name, value in found.items():
    flat |= _flat(value, f'{path}/{name}' if path else name)
  return flat
