"""Sources, augmentation, and the order of batches on any number of hosts."""

import itertools

import jax
import numpy as np
import pytest

from elt_jax.data import pipeline, sources
from elt_jax.data.sources import ArraySource


def numbered(n, shape=(2, 2, 1)):
  """Images whose every pixel is the example's number."""
  images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
  return ArraySource(
    np.broadcast_to(images, (n, *shape)).copy(), np.arange(n) % 4
  )


def ids(batch):
  return batch['image'][:, 0, 0, 0].tolist()


def test_every_epoch_is_a_new_order_of_the_same_examples(config):
  config.train.batch_size = 4
  dataset = pipeline.build_dataset(config, numbered(14))
  epochs = [
    [i for k in range(3) for i in ids(dataset[3 * epoch + k])]
    for epoch in range(3)
  ]
  # 12 of the 14, so that epochs end between batches; other ones each time.
  assert all(len(set(epoch)) == 12 for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_see_the_parts_of_one_global_batch(config, hosts):
  config.train.batch_size = 8
  config.data.flip = True
  rng = np.random.default_rng(0)
  source = ArraySource(
    rng.integers(0, 256, (21, 4, 4, 1), np.uint8), np.arange(21) % 4
  )
  whole = pipeline.build_dataset(config, source)
  # As the devices of a slice may lie: not in one piece.
  parts = [
    pipeline.build_dataset(config, source, range(i, 8, hosts))
    for i in range(hosts)
  ]
  for step in range(7):
    # The same examples, flipped alike, in the same places of the batch.
    assert whole[step]['index'].tolist() == list(range(8))
    placed = lambda batch: {
      int(i): (image.tobytes(), int(label))
      for i, image, label in zip(
        batch['index'], batch['image'], batch['label'], strict=True
      )
    }
    split = {}
    for part in parts:
      split |= placed(part[step])
    assert split == placed(whole[step])


def test_flip_mirrors_the_width_of_about_half(config):
  config.data.flip = True
  config.train.batch_size = 64
  images = np.zeros((64, 2, 4, 1), np.uint8)
  images[:, :, 0] = 9
  batch = pipeline.build_dataset(
    config, ArraySource(images, np.zeros(64, int))
  )[0]
  left = (batch['image'][:, :, 0] == 9).all((1, 2))
  right = (batch['image'][:, :, 3] == 9).all((1, 2))
  assert (left ^ right).all() and 15 < left.sum() < 49


def test_batches_start_at_any_step_and_are_sharded(config, mesh):
  config.train.batch_size = 8
  dataset = pipeline.build_dataset(config, numbered(24))
  sharding = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  batches = lambda start, count: list(
    itertools.islice(pipeline.batches(dataset, sharding, 8, start), count)
  )
  straight, resumed = batches(0, 9), batches(5, 4)
  for a, b in zip(straight[5:], resumed, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
  np.testing.assert_array_equal(straight[2]['image'], dataset[2]['image'])
  assert straight[0]['label'].sharding == sharding


def test_mnist_split_is_whole_disjoint_and_shuffled():
  train, test = sources.mnist('train'), sources.mnist('test')
  assert train.images.shape == (4500, 28, 28, 1) and len(test) == 500
  assert train.images.dtype == np.uint8 and train.images.max() == 255
  counts = np.bincount(np.concatenate([train.labels, test.labels]))
  assert (counts == 500).all()
  assert len(set(test.labels[:50])) == 10
  seen = {image.tobytes() for image in train.images}
  assert not any(image.tobytes() in seen for image in test.images)


@pytest.mark.parametrize('split', sources.SPLITS)
def test_npz_source_reads_back(tmp_path, config, split):
  path = tmp_path / 'mine.npz'
  images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
  np.savez(
    path,
    image=images,
    label=np.arange(6) % 4,
    test_image=images[:2],
    test_label=np.array([3, 1]),
  )
  config.data.source = f'npz:{path}'
  source = sources.load_source(config, split)
  assert len(source) == (6 if split == 'train' else 2)
  np.testing.assert_array_equal(source[1]['image'], images[1])


@pytest.mark.parametrize(
  'change,message',
  [
    (
      {'image': np.zeros((4, 9, 8, 1), np.uint8)},
      r'shape \(9, 8, 1\).*\(8, 8, 1\)',
    ),
    (
      {'image': np.full((4, 8, 8, 1), 200, np.float32)},
      r'pixels in \[200, 200\]',
    ),
    ({'image': np.zeros((4, 8, 8, 1), np.float64)}, 'float64 pixels'),
    ({'image': np.full((4, 8, 8, 1), np.nan, np.float32)}, 'pixels in'),
    ({'label': np.array([0, 1, 2, 4])}, r'labels 0\.\.4, outside 0\.\.3'),
    ({'label': np.array([0, -1, 2, 3])}, r'labels -1\.\.3'),
    ({'label': np.array([0, 1, 2])}, '4 and 3'),
    ({'label': np.array([0.0, 1.0, 2.7, 3.0])}, 'float64'),
    ({'label': np.eye(4, dtype=np.int64)}, 'integers'),
  ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, config, change, message):
  arrays = {
    'image': np.zeros((4, 8, 8, 1), np.uint8),
    'label': np.array([0, 1, 2, 3]),
  } | change
  path = tmp_path / 'bad.npz'
  np.savez(path, **arrays)
  config.data.source = f'npz:{path}'
  with pytest.raises(ValueError, match=message):
    sources.load_source(config, 'train')


def test_missing_file_array_source_and_split_are_named(tmp_path, config):
  config.data.source = f'npz:{tmp_path}/none.npz'
  with pytest.raises(ValueError, match='there is no file .*none.npz'):
    sources.load_source(config, 'train')
  np.savez(tmp_path / 'x.npz', image=np.zeros((2, 8, 8, 1), np.uint8))
  config.data.source = f'npz:{tmp_path}/x.npz'
  with pytest.raises(ValueError, match=r"lacks \['label'\]"):
    sources.load_source(config, 'train')
  (tmp_path / 'cut.npz').write_bytes((tmp_path / 'x.npz').read_bytes()[:300])
  config.data.source = f'npz:{tmp_path}/cut.npz'
  with pytest.raises(ValueError, match='not a readable .npz'):
    sources.load_source(config, 'train')
  config.data.source = 'cifar'
  with pytest.raises(ValueError, match="'latents:DIR', got 'cifar'"):
    sources.load_source(config, 'train')
  with pytest.raises(ValueError, match="got 'val'"):
    sources.load_source(config, 'val')


def test_batches_that_exceed_the_source_are_refused(config):
  with pytest.raises(ValueError, match='larger than the source, 9'):
    pipeline.build_dataset(config, numbered(9))
