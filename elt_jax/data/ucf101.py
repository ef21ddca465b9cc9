"""UCF-101 as it is distributed: videos in class folders, and lists of splits.

    DIR/UCF-101/CLASS/v_CLASS_g01_c01.avi   or DIR/CLASS/...
    DIR/ucfTrainTestlist/classInd.txt       1 ApplyEyeMakeup
    DIR/ucfTrainTestlist/trainlist01.txt    ApplyEyeMakeup/v_....avi 1
    DIR/ucfTrainTestlist/testlist01.txt     ApplyEyeMakeup/v_....avi

and lists 02 and 03 alike. The class with number 1 has the label 0.
"""

import pathlib

_ARCHIVES = 'UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip'


def list_files(
  directory: str | pathlib.Path, split: str, ucf_split: str
) -> tuple[list[str], list[tuple[pathlib.Path, int]]]:
  """(class names, (path, label) of each clip) of 'train' or 'test'.

  Args:
    directory: see the module.
    split: 'train' or 'test'.
    ucf_split: '1', '2' or '3', or 'all': train is the whole data set, as the
      ELT paper trains, and test is testlist01. These overlap: every clip of
      test is trained on.

  Raises:
    ValueError: if a directory, a list, or what a list names is missing or
      malformed, with its path.
  """
  root = pathlib.Path(directory)
  if not root.is_dir():
    raise ValueError(
      f'data.source: there is no directory {root}. Unpack {_ARCHIVES} there.'
    )
  lists = root / 'ucfTrainTestlist'
  class_names = _classes(lists / 'classInd.txt')
  number = '1' if ucf_split == 'all' else ucf_split
  both = ucf_split == 'all' and split == 'train'
  listed = [
    clip
    for part in (('train', 'test') if both else (split,))
    for clip in _clips(lists / f'{part}list0{number}.txt', class_names)
  ]
  videos = root / 'UCF-101' if (root / 'UCF-101').is_dir() else root
  _check_there(videos, [clip for clip, _ in listed])
  return class_names, [(videos / clip, label) for clip, label in listed]


def _lines(path: pathlib.Path) -> list[tuple[str, list[str]]]:
  """('FILE:LINE', words) of each line that has any."""
  text = path.read_text(errors='replace') if path.is_file() else ''
  if not text.strip():
    raise ValueError(f'{path} is missing or empty. Unpack {_ARCHIVES} again.')
  return [
    (f'{path}:{n}', line.split())
    for n, line in enumerate(text.splitlines(), 1)
    if line.strip()
  ]


def _classes(path: pathlib.Path) -> list[str]:
  names = []
  for n, (where, words) in enumerate(_lines(path), 1):
    if len(words) != 2 or words[0] != str(n) or words[1] in names:
      raise ValueError(
        f'{where}: expected "{n} CLASS", with a new class, got '
        f'"{" ".join(words)}". Unpack {_ARCHIVES} again.'
      )
    names.append(words[1])
  return names


def _clips(path: pathlib.Path, class_names: list[str]) -> list[tuple[str, int]]:
  """('CLASS/FILE', label) of each line of a list."""
  labels = {name: label for label, name in enumerate(class_names)}
  found = []
  for where, words in _lines(path):
    name, _, file = words[0].partition('/')
    if file and name not in labels:
      raise ValueError(
        f'{where}: the class {name} is not in classInd.txt beside it. Unpack '
        f'{_ARCHIVES} again.'
      )
    number = [str(labels[name] + 1)] if file and 'train' in path.name else []
    if not file or words[1:] != number:
      raise ValueError(
        f'{where}: expected CLASS/FILE, and in train lists the number of the '
        f'class, got "{" ".join(words)}". Unpack {_ARCHIVES} again.'
      )
    found.append((words[0], labels[name]))
  return found


def _check_there(videos: pathlib.Path, clips: list[str]) -> None:
  """Raises ValueError unless `videos` has the folders and files of `clips`."""
  folders = sorted({clip.partition('/')[0] for clip in clips})
  for kind, names, there in (
    ('class folders', folders, pathlib.Path.is_dir),
    ('clips', clips, pathlib.Path.is_file),
  ):
    if missing := [name for name in names if not there(videos / name)]:
      raise ValueError(
        f'{videos} lacks {len(missing)} of {len(names)} listed {kind}: '
        f'{", ".join(missing[:3])}... Unpack {_ARCHIVES} again.'
      )
