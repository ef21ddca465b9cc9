"""Clips of moving digits: what moves, how, and that it is always the same."""

import itertools

import numpy as np
import pytest

from configs.base import get_base
from elt_jax.data import pipeline, sources
from elt_jax.data.moving_mnist import SPEED, MovingDigits, boxed, class_names
from elt_jax.validation import validate


def video_config(source='moving_mnist', **data):
  c = get_base()
  c.data.update({'source': source, 'image_size': 32, 'num_frames': 16} | data)
  c.train.batch_size = 8
  return c


def corners(clip, side):
  """[f, 2], where a block of full brightness begins in each frame."""
  found = []
  for frame in clip[..., 0]:
    rows, columns = (np.flatnonzero((frame == 255).any(a)) for a in (1, 0))
    assert np.ptp(rows) == np.ptp(columns) == side - 1
    found.append((rows[0], columns[0]))
  return np.array(found)


def blocks(n=6, **options):
  """Digits that are full squares, so that every place can be read off."""
  images = np.full((n, 28, 28, 1), 255, np.uint8)
  if options['size'] == 32:
    images = np.pad(images[:, :20, :20], ((0, 0), (5, 3), (2, 6), (0, 0)))
  return MovingDigits(images, np.arange(n) % 10, **options)


@pytest.mark.parametrize('size,side', [(32, 20), (64, 28)])
def test_digits_move_straight_and_are_reflected(size, side):
  source = blocks(size=size, num_frames=40)
  free, hits = size - side, 0
  for i in range(len(source)):
    at = corners(source[i]['image'], side)
    assert at.min() >= 0 and at.max() <= free
    steps = np.diff(at, axis=0)
    assert np.abs(steps).max() <= np.ceil(SPEED * free)
    # Three steps between walls: straight, and as long as SPEED says.
    for k in range(len(steps) - 2):
      inside = at[k : k + 4]
      if inside.min() <= SPEED * free or inside.max() >= (1 - SPEED) * free:
        continue
      assert np.abs(steps[k : k + 3] - steps[k]).max() <= 1
      length = np.linalg.norm(inside[3] - inside[0]) / 3
      np.testing.assert_allclose(length, SPEED * free, atol=0.5)
    # A way turns only where a wall is within a step.
    signs = np.sign(steps)
    for k, axis in np.argwhere(signs[1:] * signs[:-1] < 0):
      hits += 1
      beside = at[k + 1, axis]
      assert min(beside, free - beside) <= np.ceil(SPEED * free)
  assert hits > 10


def test_small_clips_hold_the_ink_as_it_is():
  rng = np.random.default_rng(0)
  images = np.zeros((3, 28, 28, 1), np.uint8)
  for image, (h, w, y, x) in zip(
    images, [(20, 20, 8, 0), (17, 6, 3, 9), (1, 1, 27, 27)]
  ):
    image[y : y + h, x : x + w] = rng.integers(1, 256, (h, w, 1), np.uint8)
    box = boxed(image)[..., 0]
    before, after = (20 - h) // 2, (20 - w) // 2
    np.testing.assert_array_equal(
      box[before : before + h, after : after + w],
      image[y : y + h, x : x + w, 0],
    )
    assert box.astype(int).sum() == image.astype(int).sum()
  source = MovingDigits(images, np.array([4, 5, 6]), size=32, num_frames=2)
  for i, image in enumerate(images):
    for frame in source[i]['image']:
      np.testing.assert_array_equal(
        np.sort(frame[frame > 0]), np.sort(image[image > 0])
      )
    assert source[i]['label'] == source.labels[i] == [4, 5, 6][i]
  assert not boxed(np.zeros((28, 28, 1), np.uint8)).any()
  wide = np.pad(np.full((4, 21, 1), 9, np.uint8), ((0, 24), (0, 7), (0, 0)))
  with pytest.raises(ValueError, match='20 x 20 pixels of ink, got 4 x 21'):
    boxed(wide)


def test_a_place_is_one_clip_and_a_view_is_another():
  source = blocks(size=32, num_frames=16, windows=2)
  assert len(source) == 12 and source.labels.tolist()[:4] == [0, 0, 1, 1]
  same = [source[3]['image'] for _ in range(2)]
  np.testing.assert_array_equal(*same)
  # Two windows are two motions of one digit; so is another seed.
  other = blocks(size=32, num_frames=16, windows=2, seed=1)
  for clip in (source[2]['image'], other[3]['image']):
    assert (clip != same[0]).any()
  view = lambda seed: source.view(3, np.random.default_rng(seed))
  np.testing.assert_array_equal(view(5)['image'], view(5)['image'])
  assert (view(5)['image'] != view(6)['image']).any()
  assert view(5)['label'] == source[3]['label']


def test_two_digits_have_the_class_of_the_pair():
  names = class_names(2)
  assert len(names) == 55 and names[:3] == ['0+0', '0+1', '0+2']
  assert class_names(1) == list('0123456789')
  images = np.zeros((10, 28, 28, 1), np.uint8)
  # Digit d lights 2 x 2 blocks of its own brightness.
  images += 20 * (1 + np.arange(10, dtype=np.uint8)).reshape(10, 1, 1, 1)
  source = MovingDigits(images, np.arange(10), 64, 16, digits=2, windows=3)
  for i in range(len(source)):
    example = source[i]
    seen = set(np.unique(example['image']) // 20) - {0}
    pair = {int(d) + 1 for d in names[example['label']].split('+')}
    # The darker one may be hidden in some frames, not in all sixteen.
    assert seen <= pair and max(pair) in seen
    assert source.labels[i] == example['label']
    assert str(i // 3) in names[example['label']]


def test_training_sees_new_motions_on_any_number_of_hosts():
  config = video_config()
  source = sources.load_source(config, 'train')
  whole = pipeline.build_dataset(config, source)
  epoch = len(source) // 8
  # The same digits move otherwise in the next epoch.
  fixed = {source[i]['image'].tobytes() for i in range(len(source))}
  clips = itertools.chain(*(whole[k]['image'] for k in (0, 1, epoch)))
  drawn = {clip.tobytes() for clip in clips}
  assert len(drawn) == 24 and not fixed & drawn
  again = pipeline.build_dataset(config, source)[epoch + 3]
  np.testing.assert_array_equal(again['image'], whole[epoch + 3]['image'])
  places = np.arange(len(whole[5]['index']))
  parts = [
    pipeline.build_dataset(config, source, half)[5]
    for half in np.split(places, 2)
  ]
  for part in parts:
    place = part['index']
    np.testing.assert_array_equal(part['image'], whole[5]['image'][place])


def test_splits_have_other_digits_and_the_sizes_asked_for():
  config = video_config(windows=2)
  train, test = (sources.load_source(config, s) for s in sources.SPLITS)
  assert (len(train), len(test)) == (9000, 1000)
  assert test[0]['image'].shape == (16, 32, 32, 1)
  assert test[0]['image'].dtype == np.uint8 and test[0]['image'].max() > 200
  assert set(test.labels) == set(range(10))


def test_a_batch_of_one_can_be_trained_on():
  config = video_config()
  config.train.batch_size = 1
  dataset = pipeline.build_dataset(config, blocks(size=32, num_frames=16))
  assert next(iter(dataset.to_iter_dataset()))['image'].shape[0] == 1


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'image_size': 48}, 'side (32, 64), got data.image_size = 48'),
    ({'source': 'moving_mnist:3'}, "got 'moving_mnist:3'"),
    ({'source': 'moving_mnist:two'}, "got 'moving_mnist:two'"),
    ({'source': 'moving_mnist:2'}, 'has 55 classes, data.num_classes is 10'),
    ({'num_frames': 1}, 'examples of shape (1, 32, 32, 1)'),
    ({'num_channels': 3}, 'asks for (16, 32, 32, 3)'),
    ({'windows': 0}, 'data.windows must be at least 1, got 0'),
  ],
)
def test_what_does_not_fit(changes, message):
  with pytest.raises(ValueError) as error:
    sources.load_source(validate(video_config(**changes)), 'test')
  assert message in str(error.value)
