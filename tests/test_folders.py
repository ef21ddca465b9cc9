"""Class folders of images: splits, labels, lists, files that do not open."""

import numpy as np
from PIL import Image
import pytest
import scipy.io

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
  np.testing.assert_array_equal(whole.labels, range(4))
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
  with pytest.raises(
    ValueError, match=r'cat/1\.png cannot be decoded.*skip_unreadable=True'
  ):
    source[0]
  (tmp_path / 'cat' / '1.png').unlink()
  with pytest.raises(FileNotFoundError, match='1.png'):
    source[0]
  with pytest.raises(ValueError, match='1 or 3 channels'):
    folders.FolderSource(tmp_path, 'train', 8, 4)


def test_the_next_readable_image_stands_in(tmp_path, caplog):
  for n in range(5):
    write(tmp_path / 'train' / 'abcde'[n] / f'{n}.jpg', 40 * n)
  for n in (1, 4):
    path = tmp_path / 'train' / 'abcde'[n] / f'{n}.jpg'
    path.write_bytes(path.read_bytes()[:200])
  config = tiny_config()
  config.data.source = f'folder:{tmp_path}'
  config.data.update(
    {'num_classes': 5, 'num_channels': 3, 'skip_unreadable': True}
  )
  write(tmp_path / 'test' / 'a' / '0.png', 0)
  source = sources.load_source(config, 'train')
  # The next of the list, from the last on the first, with its label.
  for _ in range(2):
    assert [source[i]['label'] for i in range(5)] == [0, 2, 2, 3, 0]
  np.testing.assert_array_equal(source[1]['image'], source[2]['image'])
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == len(source.unreadable) == 2
  assert '4.jpg cannot be decoded' in messages[1]
  assert '2 of 5 images so far' in messages[1]


@pytest.fixture
def imagenet(tmp_path):
  """Three classes in train; val and test of six images in no class folder."""
  for i, name in enumerate(('n03', 'n01', 'n02')):
    write(tmp_path / 'train' / name / f'{name}_7.JPEG', i)
  for n in range(6):
    write(tmp_path / 'val' / f'ILSVRC2012_val_0000000{n + 1}.JPEG', 40 * n)
    write(tmp_path / 'test' / f'ILSVRC2012_test_0000000{n + 1}.JPEG', 0)
  return tmp_path


def labels_of(root):
  source = folders.FolderSource(root, 'test', 8, 1)
  values = [int(source[i]['image'][0, 0, 0]) for i in range(len(source))]
  assert values == [40 * n for n in range(len(source))]
  return source.labels.tolist()


def write_kit(root, numbers):
  kit = root / 'ILSVRC2012_devkit_t12' / 'data'
  kit.mkdir(parents=True)
  dtype = [(n, 'O') for n in ('ILSVRC2012_ID', 'WNID', 'words')]
  # As distributed: not by name, and with more than what has images.
  synsets = [(1, 'n02', 'b'), (2, 'n03', 'c'), (3, 'n01', 'a'), (4, 'n00', '')]
  scipy.io.savemat(kit / 'meta.mat', {'synsets': np.array(synsets, dtype)})
  (kit / 'ILSVRC2012_validation_ground_truth.txt').write_text(
    ''.join(f'{number}\n' for number in numbers)
  )
  return kit


def test_imagenet_by_its_development_kit(imagenet):
  write_kit(imagenet, [1, 2, 3, 3, 2, 1])
  train = folders.FolderSource(imagenet, 'train', 8, 3)
  assert train.class_names == ['n01', 'n02', 'n03']
  np.testing.assert_array_equal(train.labels, [0, 1, 2])
  assert labels_of(imagenet) == [1, 2, 0, 0, 2, 1]


def write_list(path, classes):
  path.write_text(
    ''.join(
      f'ILSVRC2012_val_0000000{n}.JPEG {name}\n'
      for n, name in enumerate(classes.split(), 1)
    )
  )


@pytest.mark.parametrize('name', ['val', 'validation'])
def test_imagenet_by_a_list(imagenet, name):
  (imagenet / 'val').rename(imagenet / name)
  write_kit(imagenet, [9])  # Goes unread where there is a list.
  for classes in ('n03 n01 n01 n03 n02 n02', '2 0 0 2 1 1'):
    write_list(imagenet / f'{name}.txt', classes)
    assert labels_of(imagenet) == [2, 0, 0, 2, 1, 1]


def test_classes_whose_names_are_numbers(imagenet):
  """Sorted they are 1, 10, 2: places are not names."""
  for old, new in zip(('n01', 'n02', 'n03'), ('1', '10', '2')):
    (imagenet / 'train' / old).rename(imagenet / 'train' / new)
  write_list(imagenet / 'val.txt', '1 10 2 1 10 2')
  assert labels_of(imagenet) == [0, 1, 2, 0, 1, 2]
  write_list(imagenet / 'val.txt', '0 1 2 0 1 2')
  assert labels_of(imagenet) == [0, 1, 2, 0, 1, 2]
  write_list(imagenet / 'val.txt', '1 2 2 1 2 1')
  message = '1 is the name of a class and the place of another, 10'
  with pytest.raises(ValueError, match=message):
    labels_of(imagenet)


def test_imagenet_with_class_folders_in_val(imagenet):
  for path in (imagenet / 'val').iterdir():
    path.unlink()
  write(imagenet / 'val' / 'n02' / 'a.JPEG', 0)
  assert labels_of(imagenet) == [1]


@pytest.mark.parametrize(
  'change,message',
  [
    (
      lambda root: None,
      'test has no class folders: make .*test.txt with lines',
    ),
    (lambda root: write_kit(root, [1]), 'val has 6 files, .* has 1 numbers'),
    (lambda root: write_kit(root, [1] * 5 + [4]), r"no class .*: \['4'\]"),
    (
      lambda root: (write_kit(root, [1] * 6) / 'meta.mat').write_bytes(b'MAT'),
      'is no meta.mat of ILSVRC2012',
    ),
    (
      lambda root: (root / 'val.txt').write_text('a.JPEG 1'),
      'val lacks 1 of 1 listed files: a.JPEG',
    ),
    (
      lambda root: (root / 'val.txt').write_text('\na.JPEG n04'),
      'val.txt:2: expected "FILE CLASS", .* 0 to 2; got "a.JPEG n04"',
    ),
    (
      lambda root: write_list(root / 'val.txt', 'n01 2'),
      'val.txt has classes by name, n01, and by place, 2: write all of one',
    ),
  ],
)
def test_lists_that_do_not_fit_are_named(imagenet, change, message):
  change(imagenet)
  with pytest.raises(ValueError, match=message):
    folders.FolderSource(imagenet, 'test', 8, 3)
