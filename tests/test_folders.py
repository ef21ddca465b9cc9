"""Class folders of images: splits, labels, cropping, files that do not open."""

import numpy as np
from PIL import Image
import pytest

from elt_jax.data import folders, sources
from tests.conftest import tiny_config


def write(path, value, size=(8, 8)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def test_split_folders(tmp_path):
  write(tmp_path / 'train' / 'cat' / 'b.png', 10)
  write(tmp_path / 'train' / 'ant' / 'a.jpg', 20)
  write(tmp_path / 'train' / 'cat' / 'deep' / 'a.PNG', 30)
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('not an image')
  write(tmp_path / 'val' / 'cat' / 'c.png', 40)
  train = folders.FolderSource(tmp_path, 'train', 8, 3)
  test = folders.FolderSource(tmp_path, 'test', 8, 3)
  assert train.class_names == test.class_names == ['ant', 'cat']
  assert [train[i]['image'][0, 0, 0] for i in range(3)] == [20, 10, 30]
  np.testing.assert_array_equal(train.labels, [0, 1, 1])
  assert len(test) == 1 and test[0]['label'] == 1
  assert test[0]['image'].shape == (8, 8, 3)


def test_undivided_folders_hold_out_one_in_twenty(tmp_path):
  for n in range(45):
    write(tmp_path / 'ab'[n % 2] / f'{n:03d}.png', n)
  parts = {
    split: folders.FolderSource(tmp_path, split, 8, 1)
    for split in sources.SPLITS
  }
  values = {
    split: [int(part[i]['image'][0, 0, 0]) for i in range(len(part))]
    for split, part in parts.items()
  }
  assert len(values['test']) == 3
  assert sorted(values['train'] + values['test']) == list(range(45))


def test_train_alone_is_divided_too(tmp_path):
  for n in range(40):
    write(tmp_path / 'train' / 'ab'[n % 2] / f'{n:03d}.png', n)
  (tmp_path / 'train' / '.hidden').mkdir()
  (tmp_path / 'train' / '__MACOSX').mkdir()
  train, test = (
    folders.FolderSource(tmp_path, split, 8, 1) for split in sources.SPLITS
  )
  assert train.class_names == test.class_names == ['a', 'b']
  assert (len(train), len(test)) == (38, 2)
  write(tmp_path / 'test' / 'c' / '0.png', 1)
  with pytest.raises(ValueError, match=r"train has not: \['c'\]"):
    folders.FolderSource(tmp_path, 'test', 8, 1)


def test_crop_is_central_and_scales_the_short_side():
  x = np.zeros((40, 80, 3), np.uint8)
  x[:, 20:60] = 200
  image = folders.center_crop(Image.fromarray(x), 10)
  assert image.shape == (10, 10, 3)
  # The middle half of the long side, but for what the filter mixes in.
  assert (image[:, 1:-1] > 190).all()
  enlarged = folders.center_crop(Image.fromarray(x), 60)
  assert enlarged.shape == (60, 60, 3)


def test_through_the_config(tmp_path):
  config = tiny_config()
  config.data.source = f'folder:{tmp_path}'
  config.data.num_channels = 3
  for name in 'abcd':
    write(tmp_path / 'train' / name / '0.png', 7, (30, 20))
    write(tmp_path / 'test' / name / '0.png', 8)
  source = sources.load_source(config, 'train')
  assert len(source) == 4 and source[0]['image'].shape == (8, 8, 3)
  whole = sources.in_memory(source)
  np.testing.assert_array_equal(whole.images, np.full((4, 8, 8, 3), 7))
  config.data.num_classes = 3
  with pytest.raises(ValueError, match='4 classes, .* is 3'):
    sources.load_source(config, 'train')


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ValueError, match='there is no directory'):
    folders.FolderSource(tmp_path / 'none', 'train', 8, 3)
  (tmp_path / 'cat').mkdir()
  with pytest.raises(ValueError, match='has no images'):
    folders.FolderSource(tmp_path, 'train', 8, 3)
  for n in range(2):
    (tmp_path / 'cat' / f'{n}.png').write_bytes(b'\x89PNG broken')
  source = folders.FolderSource(tmp_path, 'train', 8, 3)
  with pytest.raises(ValueError, match=r'cat/1\.png cannot be decoded'):
    source[0]
  deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
  deep.save(tmp_path / 'cat' / '1.png')
  with pytest.raises(ValueError, match='1.png is of mode I;16'):
    source[0]
  with pytest.raises(ValueError, match='1 or 3 channels'):
    folders.FolderSource(tmp_path, 'train', 8, 4)
