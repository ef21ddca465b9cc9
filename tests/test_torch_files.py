"""PyTorch's files read without PyTorch.

tests/goldens/torch: made by `make goldens`.
"""

import os
import pickle
import zipfile

import numpy as np
import pytest

from elt_jax import files, torch_files
from tests.commands import ROOT

GOLDENS = ROOT / 'tests' / 'goldens' / 'torch'


@pytest.mark.parametrize('layout', ['zip', 'stream'])
def test_arrays_are_those_that_were_saved(layout):
  found = torch_files.read_state_dict(GOLDENS / f'{layout}.pth')
  wanted = files.read_npz(GOLDENS / 'arrays.npz')
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    assert found[name].dtype == value.dtype and found[name].flags.writeable
    np.testing.assert_array_equal(found[name], value, strict=True)


class Evil:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def in_zip(path, data):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', data)
  return path


def in_stream(path, data):
  parts = (torch_files._MAGIC, torch_files._PROTOCOL, {'little_endian': True})
  path.write_bytes(b''.join(map(pickle.dumps, parts)) + data)
  return path


@pytest.mark.parametrize('wrap', [in_zip, in_stream])
def test_nothing_is_run(tmp_path, wrap):
  trap = tmp_path / 'trap'
  path = wrap(tmp_path / 'x.pth', pickle.dumps({'a': Evil(str(trap))}))
  with pytest.raises(ValueError, match='it asks for .*mkdir.*nothing was run'):
    torch_files.read_state_dict(path)
  assert not trap.exists()


@pytest.mark.parametrize('layout', ['zip', 'stream'])
def test_files_cut_short_are_named(tmp_path, layout):
  whole = (GOLDENS / f'{layout}.pth').read_bytes()
  path = tmp_path / 'x.pth'
  for size in (0, 9, len(whole) // 2, len(whole) - 60):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match='x.pth'):
      torch_files.read_state_dict(path)


def test_a_storage_of_another_size_is_refused(tmp_path):
  path = tmp_path / 'x.pth'
  with (
    zipfile.ZipFile(GOLDENS / 'zip.pth') as old,
    zipfile.ZipFile(path, 'w') as new,
  ):
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, data[:-4] if name.endswith('data/0') else data)
  with pytest.raises(ValueError, match='exceeds its storage'):
    torch_files.read_state_dict(path)


def test_a_file_promises_no_more_than_it_holds(tmp_path):
  path = tmp_path / 'x.pth'
  with (
    zipfile.ZipFile(GOLDENS / 'zip.pth') as old,
    zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as new,
  ):
    for name in old.namelist():
      new.writestr(name, old.read(name))
  with pytest.raises(ValueError, match='is compressed, as PyTorch writes'):
    torch_files.read_state_dict(path)
  # In the layout before it, a size that is no size of the file's.
  storage = pickled(0, 3, 1).replace(b'K\x03tQ', b'J\xff\xff\xff\x7ftQ')
  data = storage + pickle.dumps(['0']) + (2**31 - 1).to_bytes(8, 'little')
  with pytest.raises(ValueError, match='it is cut short'):
    torch_files.read_state_dict(in_stream(path, data))


def test_tensors_share_a_storage_a_few_times_at_most(tmp_path):
  def read(times):
    one = pickled(0, 3, 1)[3:-2]  # Its name, and the tensor.
    many = b's'.join(
      one.replace(b'\0a', b'\0%c' % (97 + n)) for n in range(times)
    )
    path = in_zip(tmp_path / 'x.pth', b'\x80\x02}' + many + b's.')
    with zipfile.ZipFile(path, 'a') as archive:
      archive.writestr('archive/data/0', np.arange(3, dtype='<f4').tobytes())
    return torch_files.read_state_dict(path)

  assert len(read(4)) == 4
  with pytest.raises(ValueError, match='are 60 bytes, of 12 that it holds'):
    read(5)


def pickled(offset, size, stride):
  """{'a': a tensor of one axis in storage 0, of 3 float32}, as of torch."""
  storage = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0' + b'0'
  storage += b'X\x03\0\0\0cpuK\x03tQ'
  place = bytes([*b'K', offset, *b'K', size, 0x85, *b'K', stride, 0x85])
  build = b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + place
  return b'\x80\x02}X\x01\0\0\0a' + build + b'\x89}tRs.'


@pytest.mark.parametrize(
  'offset,size,stride,stored',
  [(0, 4, 1, 3), (1, 3, 1, 3), (0, 2, 3, 3), (0, 4, 0, 3), (0, 3, 1, 4)],
)
def test_a_tensor_beyond_its_storage_is_refused(
  tmp_path, offset, size, stride, stored
):
  def read(data, numbers):
    path = in_zip(tmp_path / 'x.pth', data)
    with zipfile.ZipFile(path, 'a') as archive:
      archive.writestr(
        'archive/data/0', np.arange(numbers, dtype='<f4').tobytes()
      )
    return torch_files.read_state_dict(path)

  np.testing.assert_array_equal(read(pickled(1, 2, 1), 3)['a'], [1, 2])
  with pytest.raises(ValueError, match='exceeds its storage'):
    read(pickled(offset, size, stride), stored)


def test_tensors_of_before_pytorch_0_4_are_read(tmp_path):
  """Theirs had no gradients and hooks to be made with."""
  old = pickled(1, 2, 1).replace(b'_v2', b'').replace(b'\x89}tRs.', b'tRs.')
  path = in_zip(tmp_path / 'x.pth', old)
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/data/0', np.arange(3, dtype='<f4').tobytes())
  np.testing.assert_array_equal(torch_files.read_state_dict(path)['a'], [1, 2])


def test_views_of_storages_are_refused(tmp_path):
  """Which PyTorch 0.3 kept beside them."""
  view = b'(X\x01\0\0\x001K\x01K\x02t'
  data = pickled(1, 2, 1).replace(b'K\x03tQ', b'K\x03' + view + b'tQ')
  with pytest.raises(ValueError, match='it has views of storages'):
    torch_files.read_state_dict(in_stream(tmp_path / 'x.pth', data))


def test_tensors_in_dicts_of_dicts_are_refused(tmp_path):
  data = pickled(1, 2, 1)
  inner = data[2:-1]
  nested = b'\x80\x02}X\x01\0\0\0b' + inner + b's.'
  keys = pickle.dumps(['0'])
  for wrap, more in ((in_zip, b''), (in_stream, keys)):
    path = wrap(tmp_path / 'x.pth', nested + more)
    with pytest.raises(ValueError, match='does not hold a state|one dict of'):
      torch_files.read_state_dict(path)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('model.txt', '')
  with pytest.raises(ValueError, match='an archive of something else'):
    torch_files.read_state_dict(path)


def test_programs_are_refused(tmp_path):
  path = in_zip(tmp_path / 'x.pt', pickled(1, 2, 1))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/constants.pkl', pickle.dumps(()))
  with pytest.raises(ValueError, match='it is a TorchScript program'):
    torch_files.read_state_dict(path)


def test_what_is_no_state_dict_is_refused(tmp_path):
  path = in_zip(tmp_path / 'x.pth', pickle.dumps([1, 2]))
  with pytest.raises(ValueError, match='does not hold a state dict'):
    torch_files.read_state_dict(path)
  path = in_zip(tmp_path / 'y.pth', pickle.dumps({'epoch': 3}))
  with pytest.raises(ValueError, match='does not hold a state dict'):
    torch_files.read_state_dict(path)
  with pytest.raises(ValueError, match='There is no file'):
    torch_files.read_state_dict(tmp_path / 'z.pth')
