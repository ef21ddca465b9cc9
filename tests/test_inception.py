"""FID's Inception against torch-fidelity's.

tests/goldens/inception.npz: made by `make goldens`, random weights.
"""

import numpy as np
import pytest
import safetensors.numpy

from elt_jax import files
from elt_jax.evals import inception
from tests.commands import ROOT
from tests.helpers import inception_weights


@pytest.fixture(scope='module')
def weights():
  return inception_weights()


@pytest.fixture(scope='module')
def golden():
  return files.read_npz(ROOT / 'tests' / 'goldens' / 'inception.npz')


def test_features_are_those_of_torch_fidelity(weights, golden):
  network = inception.Inception(weights)
  found = network(golden['images'], batch_size=8)
  close = dict(rtol=1e-3, atol=1e-3 * np.abs(golden['pool']).mean())
  np.testing.assert_allclose(found.pool, golden['pool'], **close)
  odds = np.exp(golden['logits'] - golden['logits'].max(1, keepdims=True))
  wanted = odds / odds.sum(1, keepdims=True)
  np.testing.assert_allclose(found.probabilities, wanted, rtol=2e-3)
  assert found.spatial.shape == (2, 7 * 17 * 17)
  spatial = golden['spatial'].reshape(2, -1)
  np.testing.assert_allclose(
    found.spatial, spatial, rtol=1e-3, atol=1e-3 * np.abs(spatial).mean()
  )
  # More than a batch holds, and grey.
  many = np.repeat(golden['images'][:1, ..., :1], 9, 0)
  grey = network(many, batch_size=8)
  assert grey.pool.shape == (9, 2048)
  three = network(np.repeat(many[:1], 3, -1), batch_size=8)
  np.testing.assert_allclose(grey.pool[8], three.pool[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('suffix', ['safetensors', 'npz'])
def test_weights_are_read_from_files(weights, tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  if suffix == 'npz':
    np.savez(path, **weights)
  else:
    safetensors.numpy.save_file(weights, path)
  found = inception.load(path)
  assert found.keys() == weights.keys()
  np.testing.assert_array_equal(found['fc.weight'], weights['fc.weight'])


def test_other_files_are_refused(weights, tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, **{k: v for k, v in weights.items() if k != 'fc.weight'})
  with pytest.raises(ValueError, match=r'fc.weight is missing, expected \(100'):
    inception.load(path)
  with pytest.raises(ValueError, match='--inception: there is no file'):
    inception.load(tmp_path / 'y.pth')
  (tmp_path / 'z.safetensors').write_bytes(b'\x80\x04')
  with pytest.raises(ValueError, match='is not a .safetensors file'):
    inception.load(tmp_path / 'z.safetensors')


def test_only_bytes_are_taken(weights):
  with pytest.raises(ValueError, match='takes uint8'):
    inception.Inception(weights)(np.zeros((1, 8, 8, 3), np.float32))
