"""Inception, FID and IS beside torch-fidelity, from a file it reads too."""

from helpers import inception_weights
from make_goldens import fidelity_inception
import numpy as np
import pytest
import scipy.linalg
import torch

from elt_jax.evals import frechet, image_metrics, inception

# Of the 2,048 features, those that vary most: their covariance has full rank
# from 96 images, as a matrix square root needs.
FEATURES = 64


@pytest.fixture(scope='module')
def features(tmp_path_factory):
  """Of two sets of images: (pool, logits) of torch-fidelity, ours of both."""
  path = tmp_path_factory.mktemp('inception') / 'weights.pth'
  weights = {k: torch.from_numpy(v) for k, v in inception_weights().items()}
  torch.save(weights | {'fc.bias': torch.zeros(1008)}, path)
  theirs, ours = (
    fidelity_inception(path),
    inception.Inception(inception.load(path)),
  )
  rng = np.random.default_rng(0)
  found = []
  for low in (0, 40):
    images = rng.integers(low, 256, (96, 32, 32, 3), np.uint8)
    with torch.no_grad():
      wanted = theirs(torch.from_numpy(np.moveaxis(images, -1, 1)))
    found.append((*(x.numpy() for x in wanted), ours(images)))
  return found


def test_features(features):
  for pool, _, ours in features:
    close = dict(rtol=1e-3, atol=1e-3 * np.abs(pool).mean())
    np.testing.assert_allclose(ours.pool, pool, **close)


def test_fid(features):
  """By the direct formula of features of theirs, as pytorch-fid has it."""
  means, covariances, ours = [], [], []
  most = np.argsort(features[0][0].std(0))[-FEATURES:]
  for pool, _, found in features:
    part = pool[:, most].astype(np.float64)
    means.append(part.mean(0))
    covariances.append(np.cov(part, rowvar=False))
    moments = frechet.Moments()
    for rows in np.array_split(found.pool[:, most], 3):
      moments.add(rows)
    ours += moments.read()
  root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
  wanted = np.sum((means[0] - means[1]) ** 2)
  wanted += np.trace(covariances[0] + covariances[1] - 2 * root)
  got = frechet.frechet_distance(*ours)
  print(f"FID {got:.6f}, of torch-fidelity's features {wanted:.6f}")
  assert got == pytest.approx(wanted, rel=1e-3)


def test_is(features):
  """By torch, of logits of theirs, as torch-fidelity has it."""
  for _, logits, ours in features:
    p = torch.from_numpy(logits).double().softmax(1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(1)
    wanted = float(divergence.mean().exp())
    got = image_metrics.inception_score(ours.probabilities)
    print(f"IS {got:.6f}, of torch-fidelity's logits {wanted:.6f}")
    assert got == pytest.approx(wanted, rel=1e-3)
