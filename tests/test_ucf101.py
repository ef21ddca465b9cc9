"""UCF-101 as it is distributed: its folders, its lists, what may be wrong."""

import numpy as np
import pytest

from elt_jax.data import sources
from tests.test_clips import configured, write


@pytest.fixture
def ucf(tmp_path):
  """Four classes with 3 clips; list 01 tests on c01, 02 on c02, 03 on c03."""
  video = write(tmp_path / 'video.avi', 12)
  lists = tmp_path / 'ucfTrainTestlist'
  lists.mkdir()
  names = ['Walk', 'Archery', 'Tai', 'Zumba']
  numbered = [f'{i + 1} {name}\r\n' for i, name in enumerate(names)]
  (lists / 'classInd.txt').write_text(''.join(numbered))
  files = {
    (name, i): f'{name}/v_{name}_g01_c0{i}.avi'
    for name in names
    for i in (1, 2, 3)
  }
  for file in files.values():
    path = tmp_path / 'UCF-101' / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(video)
  for split in (1, 2, 3):
    test = [f'{file}\n' for (_, i), file in files.items() if i == split]
    train = [
      f'{file} {names.index(name) + 1}\r\n'
      for (name, i), file in files.items()
      if i != split
    ]
    (lists / f'testlist0{split}.txt').write_text(''.join(test) + '\n')
    (lists / f'trainlist0{split}.txt').write_text(''.join(train))
  return tmp_path


def listed(clip):
  return {path.name for path, _ in clip._videos}


def test_ucf101_as_distributed(ucf):
  load = lambda split, number: sources.load_source(
    configured(f'ucf101:{ucf}', ucf_split=number), split
  )
  train, test = load('train', '2'), load('test', '2')
  # In the order of classInd.txt, which need not be sorted.
  assert train.class_names == ['Walk', 'Archery', 'Tai', 'Zumba']
  np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 2, 2, 3, 3])
  np.testing.assert_array_equal(test.labels, [0, 1, 2, 3])
  assert 'v_Tai_g01_c02.avi' in listed(test)
  assert not listed(test) & listed(train)
  whole = load('train', 'all')
  assert len(whole) == len(listed(whole)) == 12
  assert listed(load('test', 'all')) == listed(load('test', '1'))
  assert listed(load('test', '1')) < listed(whole)
  for path in (ucf / 'UCF-101').iterdir():
    path.rename(ucf / path.name)
  (ucf / 'UCF-101').rmdir()
  assert len(load('train', '3')) == 8


def append(name, text):
  def change(root):
    with (root / 'ucfTrainTestlist' / name).open('a') as file:
      file.write(text)

  return change


def remove(pattern):
  return lambda root: [path.unlink() for path in root.rglob(pattern)]


@pytest.mark.parametrize(
  'change,message',
  [
    (remove('classInd.txt'), 'classInd.txt is missing or empty. Unpack'),
    (remove('trainlist01.txt'), 'trainlist01.txt is missing or empty'),
    (append('classInd.txt', '6 Yoga'), 'classInd.txt:5: expected "5 CLASS"'),
    (append('classInd.txt', '5 Tai'), 'classInd.txt:5: .*got "5 Tai"'),
    (append('classInd.txt', 'Yoga'), 'classInd.txt:5: .*got "Yoga"'),
    (append('trainlist01.txt', 'Tai/a.avi'), 'trainlist01.txt:9: expected'),
    (append('trainlist01.txt', 'Tai/a.avi 1'), ':9: .*got "Tai/a.avi 1"'),
    (append('trainlist01.txt', 'Tai 3'), 'trainlist01.txt:9: expected'),
    (append('testlist01.txt', 'Tai/a.avi 3'), 'testlist01.txt:6: expected'),
    (append('testlist01.txt', 'Yoga/a.avi'), 'class Yoga is not in classInd'),
    (remove('v_T*'), 'lacks 3 of 12 listed clips: Tai/v_Tai_g01_c02.avi, Tai'),
    (
      lambda root: (root / 'UCF-101' / 'Tai').rename(root / 'Tai'),
      'UCF-101 lacks 1 of 4 listed class folders: Tai',
    ),
  ],
)
def test_what_is_wrong_with_ucf101_is_named(ucf, change, message):
  change(ucf)
  with pytest.raises(ValueError, match=message):
    sources.load_source(configured(f'ucf101:{ucf}'), 'train')


def test_ucf101_that_is_not_there(tmp_path):
  config = configured(f'ucf101:{tmp_path / "none"}')
  with pytest.raises(ValueError, match='no directory .*none. Unpack UCF101'):
    sources.load_source(config, 'train')
