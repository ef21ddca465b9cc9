"""FID, IS, precision and recall as numbers: closed forms, parts, spread."""

import numpy as np
import pytest

from elt_jax.evals import frechet, image_metrics


def test_moments_in_parts_are_those_of_all():
  x = np.random.default_rng(0).normal(50, 1, (801, 12)).astype(np.float32)
  mean, covariance = frechet.moments(x)
  for parts in (1, 2, 8):
    found = frechet.Moments()
    for part in np.array_split(x, parts):
      found.add(part)
    np.testing.assert_allclose(found.read()[0], mean, rtol=1e-12)
    np.testing.assert_allclose(
      found.read()[1], covariance, rtol=1e-9, atol=1e-9
    )
  with pytest.raises(ValueError, match='not all finite'):
    found.add(np.full((2, 12), np.nan))
  few = frechet.Moments()
  few.add(x[:1])
  with pytest.raises(ValueError, match='at least 2 rows of features, got 1'):
    few.read()


def test_the_spread_is_that_of_many_draws():
  """Of samples of one kind, and of ten classes that take turns."""
  target = np.zeros(4), np.eye(4)
  for classes in (1, 10):
    rng = np.random.default_rng(classes)
    distances, spreads = [], []
    for _ in range(300):
      x = rng.normal(0.2, 1.1, (200, 4))
      x[:, 0] += 3 * (np.arange(200) % classes)
      samples = frechet.Samples(200, classes)
      for part in np.split(x, [8, 90]):
        samples.add(part)
      distance, spread = samples.distance(*target)
      assert distance == pytest.approx(
        frechet.frechet_distance(*frechet.moments(x), *target)
      )
      distances.append(distance)
      spreads.append(spread)
    assert np.mean(spreads) == pytest.approx(np.std(distances), rel=0.1)


def test_the_spread_of_few_samples_of_many_classes():
  x = np.random.default_rng(0).normal(size=(50, 3))
  target = np.zeros(3), np.eye(3)
  many, few = frechet.Samples(50, 20), frechet.Samples(2, 1)
  many.add(x)
  assert 0 < many.distance(*target)[1] < 1
  few.add(x[:2])
  assert np.isnan(few.distance(*target)[1])


def test_distance_of_few_samples_is_real_and_that_of_gaussians():
  """2,048 features of 300 samples; a shift alone is its length squared."""
  x = np.random.default_rng(0).normal(size=(300, 2048))
  shift = np.full(2048, 0.01)
  found = frechet.frechet_distance(
    *frechet.moments(x), *frechet.moments(x + shift)
  )
  assert found == pytest.approx((shift**2).sum(), abs=1e-6)


def test_inception_score_in_closed_form():
  certain = np.eye(10)[np.arange(1000) % 10]
  assert image_metrics.inception_score(certain) == pytest.approx(10)
  assert image_metrics.inception_score(np.full((9, 4), 0.25)) == pytest.approx(
    1
  )
  # Half of the samples of one class alone: (10 + 1) / 2.
  two = np.concatenate([certain, np.tile(certain[:1], (1000, 1))])
  assert image_metrics.inception_score(two, 1000) == pytest.approx(5.5)


def test_precision_and_recall_by_their_definition():
  rng = np.random.default_rng(1)
  a = rng.normal(size=(1100, 8)).astype(np.float32)
  b = (1.5 * rng.normal(size=(90, 8)) + 0.5).astype(np.float32)

  def among(x, others):
    distance = lambda p, q: ((p[:, None] - q) ** 2).sum(-1)
    radii = np.sort(distance(others, others), 1)[:, 3]
    return (distance(x, others) <= radii).any(1).mean()

  found = image_metrics.precision_recall(a, b)
  assert found == pytest.approx((among(b, a), among(a, b)), abs=2e-3)
  assert 0.1 < found[0] < 0.9 < found[1] < 1
  assert image_metrics.precision_recall(a, a) == (1, 1)
  with pytest.raises(ValueError, match='more than 3 examples of each'):
    image_metrics.precision_recall(a, b[:3])
