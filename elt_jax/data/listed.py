"""Labels of a folder of files without class folders, as ImageNet's val.

    DIR/val.txt    ILSVRC2012_val_00000001.JPEG 65, or the class by its name

or the development kit as it is distributed, ILSVRC2012_devkit_t12.tar.gz
unpacked in DIR:

    DIR/ILSVRC2012_devkit_t12/data/meta.mat
    DIR/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt

whose numbers are not places in the sorted list of classes: meta.mat says which
class they are.
"""

import os
import pathlib

_KIT = pathlib.Path('ILSVRC2012_devkit_t12', 'data')
_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'


def there(root: pathlib.Path, folder: pathlib.Path) -> bool:
  """Whether a list says what the files of `folder` are."""
  of_kit = folder.name != 'test' and (root / _KIT / _TRUTH).is_file()
  return _list(folder).is_file() or of_kit


def files(
  root: pathlib.Path, folder: pathlib.Path, class_names: list[str]
) -> list[tuple[str, int]]:
  """(path, label) of each file of `folder` that the list names, in its order.

  Raises:
    ValueError: if there is no list, or it does not fit the folder or the
      classes.
  """
  if _list(folder).is_file():
    named = _of_list(_list(folder), class_names)
  elif there(root, folder):
    named = _of_kit(root / _KIT, folder, class_names)
  else:
    raise ValueError(
      f'{folder} has no class folders: make {_list(folder)} with lines "FILE '
      f'CLASS", or unpack {_KIT.parent}.tar.gz in {root}.'
    )
  present = set(os.listdir(folder))
  if missing := [name for name, _ in named if name not in present]:
    raise ValueError(
      f'{folder} lacks {len(missing)} of {len(named)} listed files: '
      f'{", ".join(missing[:3])}.'
    )
  return [(str(folder / name), label) for name, label in named]


def _list(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f'{folder.name}.txt')


def _of_list(
  path: pathlib.Path, class_names: list[str]
) -> list[tuple[str, int]]:
  """(file name, label) of each line, the classes by name or all by place."""
  names = {name: label for label, name in enumerate(class_names)}
  places = {str(label): label for label in range(len(class_names))}
  known = names.keys() | places.keys()
  found = []
  for n, line in enumerate(path.read_text(errors='replace').splitlines(), 1):
    words = line.split()
    if words and (len(words) != 2 or words[1] not in known):
      raise ValueError(
        f'{path}:{n}: expected "FILE CLASS", the class by its name or its '
        f'place, 0 to {len(class_names) - 1}; got "{line.strip()}".'
      )
    found += [words] if words else []
  used = {word for _, word in found}
  readings = [labels for labels in (names, places) if labels.keys() >= used]
  if not readings:
    raise ValueError(
      f'{path} has classes by name, {min(used - places.keys())}, and by place, '
      f'{min(used - names.keys())}: write all of one kind.'
    )
  first, last = readings[0], readings[-1]
  if apart := sorted(word for word in used if first[word] != last[word]):
    raise ValueError(
      f'{path}: {apart[0]} is the name of a class and the place of another, '
      f'{class_names[last[apart[0]]]}. Put the files into class folders.'
    )
  return [(name, first[word]) for name, word in found]


def _of_kit(
  kit: pathlib.Path, folder: pathlib.Path, class_names: list[str]
) -> list[tuple[str, int]]:
  """(file name, label) of each file, in the order of their names."""
  names = sorted(name for name in os.listdir(folder) if name[0] != '.')
  numbers = (kit / _TRUTH).read_text(errors='replace').split()
  if len(names) != len(numbers):
    raise ValueError(
      f'{folder} has {len(names)} files, {kit / _TRUTH} has {len(numbers)} '
      'numbers; unpack both again.'
    )
  labels = {name: label for label, name in enumerate(class_names)}
  classes = _classes(kit / 'meta.mat')
  if unknown := {n for n in numbers if classes.get(n) not in labels}:
    raise ValueError(
      f'{kit / _TRUTH} has numbers of no class folder of training: '
      f'{sorted(unknown)[:5]}.'
    )
  return [(name, labels[classes[n]]) for name, n in zip(names, numbers)]


def _classes(path: pathlib.Path) -> dict[str, str]:
  """Number in the ground truth -> name of the class folder."""
  import scipy.io  # For this alone.

  try:
    synsets = scipy.io.loadmat(path, squeeze_me=True)['synsets']
    return {str(int(s['ILSVRC2012_ID'])): str(s['WNID']) for s in synsets}
  except Exception as e:  # scipy's own and others.
    raise ValueError(f'{path} is no meta.mat of ILSVRC2012: {e}') from e
