"""Frechet distance against closed forms; the classifier; the report."""

import json

from flax import traverse_util
import numpy as np
from PIL import Image
import pytest

from configs.base import get_base
from elt_jax import viz
from elt_jax.data import sources
from elt_jax.data.sources import ArraySource
from elt_jax.evals import classifiers, elastic, motion
from elt_jax.evals.frechet import frechet_distance, moments
from elt_jax.evals.reference import Reference, half_split_distance


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
  monkeypatch.setitem(classifiers.RECIPES['lenet'], 'max_shift', 0)
  train, test = bars(200, 0), bars(80, 1)
  load = lambda train: classifiers.load_or_train('lenet', train, test, 4)
  first = load(train)
  assert first.accuracy > 0.95
  (file,) = tmp_path.iterdir()
  content = file.read_bytes()
  images = test.images / 127.5 - 1
  features, _ = first(images)
  cached = load(train)
  np.testing.assert_array_equal(cached(images)[0], features)
  # A damaged file is made again, with the same weights.
  file.write_bytes(content[:100])
  again = load(train)
  np.testing.assert_array_equal(again(images)[0], features)
  # Other data, another file.
  with np.load(file) as arrays:
    weights = traverse_util.unflatten_dict(dict(arrays), sep='/')
  monkeypatch.setattr(classifiers, '_train', lambda *_: weights)
  load(bars(200, 2))
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_the_mnist_classifier_is_good_enough_to_judge(tmp_path, monkeypatch):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  train, test = sources.mnist('train'), sources.mnist('test')
  lenet = classifiers.load_or_train('lenet', train, test, 10)
  assert lenet.accuracy >= 0.97


def moving_blocks(n, seed):
  """A block moves to the right by a pixel a frame, in a row of its class."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 4
  clips = rng.integers(0, 30, (n, 4, 8, 8, 1), np.uint8)
  for clip, label in zip(clips, labels, strict=True):
    for i, frame in enumerate(clip):
      frame[2 * label : 2 * label + 2, i + 1 : i + 4] = 250
  return ArraySource(clips, labels)


def test_clips_are_measured_by_frame_by_clip_and_by_motion(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  for recipe in classifiers.RECIPES.values():
    monkeypatch.setitem(recipe, 'max_shift', 0)
  train, test = moving_blocks(200, 0), moving_blocks(80, 1)
  reference = Reference(train, test, 4)
  assert reference.quality == reference.facts['quality'] == 'fd_c3d'
  assert {path.name.split('-')[0] for path in tmp_path.iterdir()} == {
    'c3d',
    'lenet',
  }
  clips = test.images / 127.5 - 1
  real = reference.measure(clips, test.labels)
  of_clips = {'class_accuracy', 'frame_accuracy', 'motion'}
  assert set(real) == {'fd_c3d', 'fd_c3d_spread'} | of_clips
  assert real['class_accuracy'] == reference.facts['test_accuracy'] > 0.9
  assert real['motion'] == reference.facts['motion_of_data']
  # Of other classes than asked for, none is right; frozen, none moves.
  wrong = reference.measure(clips[::-1], (test.labels[::-1] + 1) % 4)
  assert wrong['class_accuracy'] < 0.1 > wrong['frame_accuracy']
  frozen = reference.measure(clips[:, :1].repeat(4, 1), test.labels)
  assert frozen['motion'] == 0 and frozen['fd_c3d'] > 2 * real['fd_c3d']


def digits(n=40, num_frames=16):
  """Real moving digits in [-1, 1], [n, f, 32, 32, 1]."""
  config = get_base()
  config.data.update(
    {'source': 'moving_mnist', 'image_size': 32, 'num_frames': num_frames}
  )
  source = sources.load_source(config, 'test')
  return np.stack([source[i]['image'] for i in range(n)]) / 127.5 - 1


def spoilt(clips):
  """Clips that do not move as digits do, by what is wrong with them."""
  rng = np.random.default_rng(0)
  n, f = clips.shape[:2]
  darker = np.where(np.arange(f) % 2, 0.4, 1).reshape(f, 1, 1, 1)
  return {
    'frozen': clips[:, :1].repeat(f, 1),
    'shuffled': np.stack([clip[rng.permutation(f)] for clip in clips]),
    'blinking': np.where(np.arange(f).reshape(f, 1, 1, 1) % 2, -1, clips),
    'flickering': (clips + 1) * darker - 1,
    'of many digits': clips[rng.integers(n, size=(n, f)), np.arange(f)],
    'jittering': np.stack(
      [
        [np.roll(clip[0], rng.integers(-2, 3, 2), (0, 1)) for _ in range(f)]
        for clip in clips
      ]
    ),
    'black': np.full_like(clips, -1),
  }


def test_motion_tells_moving_digits_from_all_that_do_not_move():
  clips = digits()
  assert motion.consistency(clips).mean() > 0.8
  for name, wrong in spoilt(clips).items():
    assert motion.consistency(wrong).mean() < 0.15, name
  # What is spoilt of one clip does not touch another.
  both = np.concatenate([clips[:3], spoilt(clips)['frozen'][:3]])
  assert (motion.consistency(both)[:3] > 0).all()
  assert (motion.consistency(both)[3:] == 0).all()


def test_displacements_are_those_of_the_pixels():
  rng = np.random.default_rng(0)
  frames = [np.zeros((32, 32), np.float32)]
  frames[0][12:20, 12:20] = rng.random((8, 8))
  steps = [(1, 0), (0, -2), (3, 4), (0, 0)]
  for step in steps:
    frames.append(np.roll(frames[-1], step, (0, 1)))
  moves, similarity = motion.displacements(np.stack(frames)[None])
  assert moves[0].tolist() == [list(step) for step in steps]
  np.testing.assert_allclose(similarity, 1, rtol=1e-6)
  # Half as bright: 2 (1/2) / (1 + 1/4).
  dimmed = np.stack([frames[0], frames[1] / 2])[None]
  np.testing.assert_allclose(motion.displacements(dimmed)[1], 0.8, rtol=1e-6)
  with pytest.raises(ValueError, match='three frames or more, not 2'):
    motion.consistency(np.zeros((1, 2, 8, 8, 1)))


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
      'fd_lenet_spread': 0.5,
      'class_accuracy': 0.5 + 0.1 * loops,
      'gflops_per_sample': 1.5 * loops,
      'seconds_per_sample': 0.01,
    }
    for loops in (1, 2, 4)
  ]
  recipe = {
    'quality': 'fd_lenet',
    'floor': 0.4,
    'test_accuracy': 0.98,
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
    figure = np.asarray(file.convert('RGB')).astype(int)
  assert figure.shape[1] > 800
  # Three strips of bright samples, in one of few colours.
  assert (abs(figure - 200) < 4).all(-1).sum() > 3 * 12 * 8 * 8
  text = elastic.table(report())
  assert '0.900' in text and 'floor' in text and '9.00 ± 0.50' in text


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
  assert picture.shape == (5, 7, 3)
  assert picture[1, :, 0].tolist() == [128, 0, 128, 1, 128, 2, 128]
  assert picture[3, :, 0].tolist() == [128, 3, 128, 4, 128, 5, 128]


def test_to_uint8_rounds_and_clips():
  got = viz.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0]))
  assert got.tolist() == [0, 0, 128, 255, 255]
