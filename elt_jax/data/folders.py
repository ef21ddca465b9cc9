"""Files in class folders: DIR/CLASS/*.jpg, or DIR/{train,test}/CLASS/*.jpg.

Classes are the folder names in sorted order. The test folder is called test,
val or validation, and may have its files in no class folders if a list says
what they are, see `data.listed`. Where there is no such folder, one file in
twenty is held out for the test split. Images are read here, videos in `clips`.
"""

import os
import pathlib
from typing import Any

import numpy as np

from elt_jax.data import listed, pictures
from elt_jax.data.standins import StandIns

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
_HELD_OUT = 20


class FolderSource:
  """Decodes an image when it is asked for.

  Attributes:
    class_names: folder names; the label is the place in this list.
    labels: int32 [n], as listed; an image that stands in for an unreadable one
      has its own.
    unreadable: of the images passed over so far, see `StandIns`.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    split: str,
    size: int,
    channels: int,
    skip_unreadable: bool = False,
  ):
    """Lists the files; decodes none.

    Args:
      directory: see the module.
      split: 'train' or 'test'.
      size: pixels of a side of the square that examples are cropped to.
      channels: 1 or 3.
      skip_unreadable: whether the next readable image stands in for one that
        is not.

    Raises:
      ValueError: as `list_files`, or on another number of channels.
    """
    self._mode, self._size = pictures.mode_of(channels), size
    self.class_names, files = list_files(directory, split, SUFFIXES, 'images')
    self._files = [path for path, _ in files]
    self.labels = np.array([label for _, label in files], np.int32)
    self._stand_ins = StandIns(self._files, 'images', skip_unreadable)
    self.unreadable = self._stand_ins.unreadable

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises ValueError as `StandIns.read` and `pictures.read`."""
    return self._stand_ins.read(index, self._example)

  def _example(self, index: int) -> dict[str, Any]:
    image = pictures.read(self._files[index], self._mode, self._size)
    return {'image': image, 'label': self.labels[index]}


def list_files(
  directory: str | pathlib.Path,
  split: str,
  suffixes: tuple[str, ...],
  kind: str,
) -> tuple[list[str], list[tuple[str, int]]]:
  """(class names, (path, label) of each file) of a split.

  Args:
    directory: see the module.
    split: 'train' or 'test'.
    suffixes: of the files, in lower case.
    kind: what the files are, for messages: 'images'.

  Raises:
    ValueError: if there is no such directory, no such file in it, or a class
      in the test folder that training does not have.
  """
  root = pathlib.Path(directory)
  if not root.is_dir():
    raise ValueError(f'data.source: there is no directory {root}.')
  train = root / 'train' if (root / 'train').is_dir() else root
  class_names = _folders(train)
  held_out = _held_out(root) if train != root else None
  base = held_out if held_out and split == 'test' else train
  if unknown := set(_folders(base)) - set(class_names):
    raise ValueError(
      f'{base} has classes that {train} has not: {sorted(unknown)[:5]}.'
    )
  if base == held_out and not _folders(base):
    files = listed.files(root, base, class_names)
  else:
    files = [
      (path, label)
      for label, name in enumerate(class_names)
      for path in _walk(base / name, suffixes)
    ]
  if not held_out:
    files = [
      file
      for i, file in enumerate(files)
      if (i % _HELD_OUT == 0) == (split == 'test')
    ]
  if not files:
    raise ValueError(
      f'{base} has no {kind}: expected CLASS/*{suffixes[0]} (or '
      f'{", ".join(suffixes[1:])}).'
    )
  return class_names, files


def _held_out(root: pathlib.Path) -> pathlib.Path | None:
  """The folder of the test split, if there is one.

  ImageNet's test folder has neither class folders nor a list: nobody is told
  its classes, and val is tested on.
  """
  found = [root / name for name in ('test', 'val', 'validation')]
  found = [folder for folder in found if folder.is_dir()]
  of_classes = [
    folder for folder in found if _folders(folder) or listed.there(root, folder)
  ]
  return (of_classes or found or [None])[0]


def _folders(directory: pathlib.Path) -> list[str]:
  """Names of the class folders, sorted; hidden and system ones are none."""
  return sorted(
    entry.name
    for entry in os.scandir(directory)
    if entry.is_dir() and not entry.name.startswith(('.', '__'))
  )


def _walk(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
  """Files with a suffix in a folder and below, sorted folder by folder.

  Strings: a million paths would take a gigabyte.
  """
  found = [
    os.path.join(base, name)
    for base, _, names in os.walk(folder)
    for name in names
    if os.path.splitext(name)[1].lower() in suffixes
  ]
  return sorted(found, key=lambda path: path.split(os.sep))
