"""PyTorch's state dicts, read without PyTorch and without running anything.

A .pth file is a pickle, of which a handful of names are known, that make
arrays; see `unpickling`. Both layouts are read: a zip archive (since PyTorch
1.6) and the stream before it.
"""

import collections
from collections.abc import Mapping
import io
import math
import os
import pathlib
from typing import Any, BinaryIO, ClassVar, NamedTuple
import zipfile

import numpy as np

from elt_jax.unpickling import Refused, Unpickler, reading

_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
# How the stream layout begins.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file that `torch.save` wrote of a state dict, by name.

  Raises:
    ValueError: if the file is missing, cut short, no flat dict of arrays, or
      asks for a function that making arrays does not take.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'There is no file {path}.')
  with reading(path, 'PyTorch file'):
    read = _read_zip if zipfile.is_zipfile(path) else _read_stream
    found = read(path)
  if not isinstance(found, Mapping) or not all(
    isinstance(name, str) and isinstance(value, np.ndarray)
    for name, value in found.items()
  ):
    raise ValueError(f'{path} does not hold a state dict, arrays by name.')
  return dict(found)


class _Storage(NamedTuple):
  """A storage that a pickle points to; `read` is called once it is known."""

  key: str
  dtype: Any
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


def _tensor(storage, offset, shape, stride, *rest: Any) -> _Tensor:
  """In place of torch._utils._rebuild_tensor, before PyTorch 0.4, and _v2."""
  if not isinstance(storage, _Storage):
    raise Refused('a tensor has no storage.')
  return _Tensor(storage, int(offset), tuple(shape), tuple(stride))


def _parameter(tensor: _Tensor, *rest: Any) -> _Tensor:
  """In place of torch._utils._rebuild_parameter."""
  return tensor


class _Unpickler(Unpickler):
  known: ClassVar = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    **{('torch', name): dtype for name, dtype in _DTYPES.items()},
  }

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, size = pid[:5]
    if kind != 'storage':
      raise Refused(f'it points to {kind!r}, which is no storage.')
    if any(of_view is not None for of_view in pid[5:]):
      raise Refused('it has views of storages: save it with PyTorch >= 1.6.')
    return _Storage(str(key), np.dtype(dtype), int(size))


def _read_zip(path: pathlib.Path) -> Any:
  with zipfile.ZipFile(path) as archive:
    data = [n for n in archive.namelist() if n.endswith('/data.pkl')]
    if len(data) != 1:
      raise Refused('it is an archive of something else.')
    (data,) = data
    root = data.removesuffix('data.pkl')
    if f'{root}constants.pkl' in archive.namelist():
      raise Refused('it is a TorchScript program, and no state dict.')

    def stored(name: str) -> bytes:
      # PyTorch compresses nothing: what is read is no larger than the file.
      if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise Refused(f'{name} is compressed, as PyTorch writes nothing.')
      return archive.read(name)

    order = f'{root}byteorder'
    if order in archive.namelist() and stored(order) != b'little':
      raise Refused('it is of a big-endian machine.')
    found = _Unpickler(io.BytesIO(stored(data))).load()
    cache = {}

    def buffer(storage: _Storage) -> np.ndarray:
      if storage.key not in cache:
        numbers = stored(f'{root}data/{storage.key}')
        cache[storage.key] = np.frombuffer(numbers, storage.dtype)
      return cache[storage.key]

    return _arrays(found, buffer)


def _read_stream(path: pathlib.Path) -> Any:
  with path.open('rb') as file:
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != (
      _PROTOCOL
    ):
      raise Refused('it is no PyTorch file.')
    if not _Unpickler(file).load().get('little_endian', True):
      raise Refused('it is of a big-endian machine.')
    found = _Unpickler(file).load()
    keys = [str(key) for key in _Unpickler(file).load()]
    storages = _storages(_tensors(found))
    if not storages.keys() >= set(keys):
      raise Refused('it has tensors elsewhere than in one dict of arrays.')
    # One after the other, in the order of their keys.
    cache = {key: _next_storage(file, storages[key]) for key in keys}
    return _arrays(found, lambda storage: cache[storage.key])


def _next_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
  size = int(np.frombuffer(file.read(8), '<i8')[0])
  if size != storage.size:
    raise Refused(f'a storage has {size} numbers, expected {storage.size}.')
  wanted = size * storage.dtype.itemsize
  if wanted > os.fstat(file.fileno()).st_size - file.tell():
    raise Refused('it is cut short.')
  return np.frombuffer(file.read(wanted), storage.dtype)


def _tensors(found: Any) -> list[_Tensor]:
  values = found.values() if isinstance(found, Mapping) else ()
  return [value for value in values if isinstance(value, _Tensor)]


def _storages(tensors: list[_Tensor]) -> dict[str, _Storage]:
  return {tensor.storage.key: tensor.storage for tensor in tensors}


def _arrays(found: Any, buffer: Any) -> Any:
  """The dict with arrays for tensors, each a copy of its own."""
  if not isinstance(found, Mapping):
    return None
  tensors = _tensors(found)
  storages = _storages(tensors).values()
  held = sum(of.size * of.dtype.itemsize for of in storages)
  copied = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors)
  # Tied weights are in one storage, once each; thousands would fill the memory.
  if copied > 4 * held:
    raise Refused(f'its tensors are {copied} bytes, of {held} that it holds.')
  return {
    name: _array(value, buffer(value.storage))
    if isinstance(value, _Tensor)
    else value
    for name, value in found.items()
  }


def _array(tensor: _Tensor, data: np.ndarray) -> np.ndarray:
  steps = (abs(s) * (n - 1) for s, n in zip(tensor.stride, tensor.shape))
  last = tensor.offset + sum(steps)
  empty = 0 in tensor.shape
  if (
    min((tensor.offset, *tensor.shape, *tensor.stride), default=0) < 0
    or len(data) != tensor.storage.size
    or (not empty and last >= len(data))
    or math.prod(tensor.shape) > len(data)
  ):
    raise Refused(f'a tensor of shape {tensor.shape} exceeds its storage.')
  size = data.dtype.itemsize
  view = np.lib.stride_tricks.as_strided(
    data[tensor.offset :], tensor.shape, [s * size for s in tensor.stride]
  )
  return view.copy()
