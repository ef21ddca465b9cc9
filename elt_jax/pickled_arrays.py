"""Pickled trees of numpy arrays, read without running anything.

A pickle may call any function. Here the three names are known that numpy's
arrays take, and stand for something that only keeps what it is given.
"""

from collections.abc import Mapping
import math
import pathlib
import pickle
from typing import Any

import numpy as np


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a pickled dict of dicts of arrays, by 'name/name/...'.

  Raises:
    ValueError: if the file is damaged, holds something else, or asks for a
      function that making arrays does not take.
  """
  try:
    with pathlib.Path(path).open('rb') as file:
      return _flat(_Unpickler(file).load(), '')
  except OSError:
    raise
  except _Refused as e:
    raise ValueError(f'{path}: {e}') from None
  except Exception as e:  # Of a damaged pickle: nearly any.
    raise ValueError(
      f'{path} is not a readable pickle of arrays ({type(e).__name__}: {e}).'
    ) from e


class _Refused(ValueError):
  """The pickle asks for what is not known."""


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
      raise _Refused(f'it has arrays of {dtype}, and not of numbers.')
    if min(shape, default=0) < 0 or (
      math.prod(shape) * dtype.itemsize != len(data)
    ):
      raise _Refused(f'{len(data)} bytes are no {dtype} of shape {shape}.')
    order = 'F' if by_columns else 'C'
    self.value = np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _reconstruct(*args: Any) -> _Array:
  """In place of numpy's; what the array is comes after it."""
  return _Array()


class _Unpickler(pickle.Unpickler):
  """Knows how to make dicts of arrays, and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    known = {
      ('numpy', 'dtype'): _DType,
      ('numpy', 'ndarray'): _Array,
      ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
      ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
    }
    if (module, name) in known:
      return known[module, name]
    raise _Refused(
      f'it asks for {module}.{name}, which arrays do not take; nothing was run.'
    )


def _flat(found: Any, path: str) -> dict[str, np.ndarray]:
  if isinstance(found, _Array):
    return {path: found.value}
  if not isinstance(found, Mapping) or not all(
    isinstance(name, str) for name in found
  ):
    where = f' at {path}' if path else ''
    raise _Refused(
      f'it holds a {type(found).__name__}{where}, and not arrays by name.'
    )
  flat = {}
  for name, value in found.items():
    flat |= _flat(value, f'{path}/{name}' if path else name)
  return flat
