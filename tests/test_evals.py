"""Frechet distance against closed forms; the classifier; the report."""

import json

from flax import traverse_util
import numpy as np
from PIL import Image
import pytest

from elt_jax import viz
from elt_jax.data import sources
from elt_jax.data.sources import ArraySource
from elt_jax.evals import elastic, lenet
from elt_jax.evals.frechet import frechet_distance, moments
from elt_jax.evals.reference import half_split_distance


def test_distance_of_diagonal_gaussians_is_the_closed_form():
  m1, m2 = np.array([1.0, -2.0, 0.0]), np.array([0.5, 0.0, 0.0])
  s1, s2 = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.0])
  want = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(s1) - np.sqrt(s2)) ** 2)
  got = frechet_distance(m1, np.diag(s1), m2, np.diag(s2))
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_distance_is_zero_to_itself_symmetric_and_invariant_to_rotation():
  rng = np.random.default_rng(0)
  a = moments(rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)))
  b = moments(rng.standard_normal((400, 6)) + 0.3)
  q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
  turn = lambda m: (q @ m[0], q @ m[1] @ q.T)
  np.testing.assert_allclose(frechet_distance(*a, *a), 0, atol=1e-6)
  want = frechet_distance(*a, *b)
  np.testing.assert_allclose(frechet_distance(*b, *a), want, rtol=1e-6)
  np.testing.assert_allclose(
    frechet_distance(*turn(a), *turn(b)), want, rtol=1e-6
  )


def test_rank_deficient_covariances_are_fine():
  rng = np.random.default_rng(0)
  a, b = (moments(rng.standard_normal((20, 64))) for _ in range(2))
  distance = frechet_distance(*a, *b)
  assert np.isfinite(distance) and distance > 0


@pytest.mark.parametrize(
  'features', [np.zeros((1, 3)), np.zeros(4), np.full((5, 2), np.nan)]
)
def test_moments_refuse_bad_features(features):
  with pytest.raises(ValueError, match='Frechet moments'):
    moments(features)


def bars(n, seed):
  """Images in which a row of pixels gives the class away."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 4
  images = rng.integers(0, 60, (n, 8, 8, 1), np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[2 * label : 2 * label + 2] = 250
  return ArraySource(images, labels)


def test_classifier_learns_is_deterministic_and_cached(tmp_path, monkeypatch):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  monkeypatch.setitem(lenet.RECIPE, 'max_shift', 0)
  train, test = bars(200, 0), bars(80, 1)
  first = lenet.load_or_train(train, test, 4)
  assert first.accuracy > 0.95
  (file,) = tmp_path.iterdir()
  content = file.read_bytes()
  images = test.images / 127.5 - 1
  features, _ = first(images)
  cached = lenet.load_or_train(train, test, 4)
  np.testing.assert_array_equal(cached(images)[0], features)
  # A damaged file is made again, with the same weights.
  file.write_bytes(content[:100])
  again = lenet.load_or_train(train, test, 4)
  np.testing.assert_array_equal(again(images)[0], features)
  # Other data, another file.
  with np.load(file) as arrays:
    weights = traverse_util.unflatten_dict(dict(arrays), sep='/')
  monkeypatch.setattr(lenet, '_train', lambda *_: weights)
  lenet.load_or_train(bars(200, 2), test, 4)
  assert len(list(tmp_path.iterdir())) == 2


def test_the_mnist_classifier_is_good_enough_to_judge(tmp_path, monkeypatch):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  train, test = sources.mnist('train'), sources.mnist('test')
  assert lenet.load_or_train(train, test, 10).accuracy >= 0.97


def test_half_split_floor_is_small_beside_another_distribution():
  rng = np.random.default_rng(0)
  features = rng.standard_normal((2000, 10))
  floor = half_split_distance(features)
  shifted = frechet_distance(*moments(features), *moments(features + 1))
  assert 0 < floor < 0.1 < shifted


def report():
  rows = [
    {
      'loops': loops,
      'mean_loops': float(loops),
      'fd_lenet': 9.0 / loops,
      'class_accuracy': 0.5 + 0.1 * loops,
      'gflops_per_sample': 1.5 * loops,
      'seconds_per_sample': 0.01,
    }
    for loops in (1, 2, 4)
  ]
  recipe = {
    'fd_lenet_floor': 0.4,
    'lenet_test_accuracy': 0.98,
    'max_loops_in_training': 2,
    'checkpoint_step': 7,
    'num_samples': 10,
    'num_steps': 4,
    'guidance': 1.5,
    'guidance_mode': 'cfg',
  }
  telemetry = {
    name: [[3.0, 2.0, 1.0, 0.5]] * 4
    for name in ('norm', 'update', 'relative_update', 'distance', 'effect')
  }
  telemetry = {'sampling': telemetry}
  return {'recipe': recipe, 'rows': rows, 'telemetry': telemetry}


def test_report_is_written_and_the_figure_holds_every_row(tmp_path):
  pictures = np.full((3, 12, 8, 8, 1), 200, np.uint8)
  record = {'step': 7, 'train/loss': 1.0} | {
    f'loop_{n}/{name}': n + 0.5
    for n in (1, 2, 3, 4)
    for name in ('state_rms', 'relative_update', 'loss', 'agreement')
  }
  (tmp_path / 'logs').mkdir()
  lines = json.dumps({'step': 6, 'train/loss': 2.0}), json.dumps(record), '{"s'
  (tmp_path / 'logs' / 'metrics.jsonl').write_text('\n'.join(lines))
  paths = elastic.write(str(tmp_path), report(), pictures)
  written = json.loads(paths[0].read_text())
  (look,) = written['telemetry'].pop('training')
  assert written == report()
  assert look['step'] == 7 and look['loss'] == [1.5, 2.5, 3.5, 4.5]
  with Image.open(paths[2]) as file:
    assert file.size[0] > 1000
  with Image.open(paths[1]) as file:
    figure = np.asarray(file)
  assert figure.shape[1] > 800
  # Three strips of bright samples.
  assert (figure[..., :3] == 200).all(-1).sum() > 3 * 12 * 8 * 8
  text = elastic.table(report())
  assert '0.900' in text and 'floor' in text


def test_grid_places_images_row_by_row():
  images = (
    np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(2, 2)
  )
  picture = viz.grid(images, columns=3, pad=1)
  assert picture.shape == (1 + 2 * 3, 1 + 3 * 3, 3)
  assert picture[1, 1, 0] == 0 and picture[1, 7, 0] == 2
  assert picture[4, 1, 0] == 3 and picture[4, 7, 0] == 128


def test_frames_of_a_clip_stand_side_by_side():
  clips = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
  picture = viz.grid(clips, columns=1, pad=1)
  assert picture.shape == (5, 5, 3)
  assert picture[1, 1:4, 0].tolist() == [0, 1, 2]
  assert picture[3, 1:4, 0].tolist() == [3, 4, 5]


def test_to_uint8_rounds_and_clips():
  got = viz.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0]))
  assert got.tolist() == [0, 0, 128, 255, 255]
