"""Files in class folders: DIR/CLASS/*.jpg, or DIR/{train,test}/CLASS/*.jpg.

Classes are the folder names in sorted order. Where there is no test (or val)
folder, one file in twenty is held out for the test split. Images are read
here, videos in `clips`.
"""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
# What a picture may be stored as; others would be clipped or misread.
MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
_HELD_OUT = 20


class FolderSource:
  """Decodes an image when it is asked for.

  Attributes:
    class_names: folder names; the label is the place in this list.
    labels: int32 [n].
  """

  def __init__(
    self, directory: str | pathlib.Path, split: str, size: int, channels: int
  ):
    """Lists the files; decodes none.

    Args:
      directory: see the module.
      split: 'train' or 'test'.
      size: pixels of a side of the square that examples are cropped to.
      channels: 1 or 3.

    Raises:
      ValueError: as `list_files`, or on another number of channels.
    """
    self.class_names, files = list_files(directory, split, SUFFIXES, 'images')
    if channels not in (1, 3):
      raise ValueError(
        f'Folders of images give 1 or 3 channels, not data.num_channels = '
        f'{channels}.'
      )
    self._files = [path for path, _ in files]
    self._size, self._mode = size, 'L' if channels == 1 else 'RGB'
    self.labels = np.array([label for _, label in files], np.int32)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises ValueError, naming the file, if it cannot be decoded."""
    image = open_image(self._files[index], self._mode)
    pixels = center_crop(image, self._size)
    return {
      'image': pixels.reshape(self._size, self._size, -1),
      'label': self.labels[index],
    }


def list_files(
  directory: str | pathlib.Path,
  split: str,
  suffixes: tuple[str, ...],
  kind: str,
) -> tuple[list[str], list[tuple[pathlib.Path, int]]]:
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
  held_out = [root / name for name in ('test', 'val') if train != root]
  held_out = [folder for folder in held_out if folder.is_dir()]
  base = held_out[0] if held_out and split == 'test' else train
  class_names = _folders(train)
  if unknown := set(_folders(base)) - set(class_names):
    raise ValueError(
      f'{base} has classes that {train} has not: {sorted(unknown)[:5]}.'
    )
  files = [
    (path, label)
    for label, name in enumerate(class_names)
    for path in sorted((base / name).rglob('*'))
    if path.suffix.lower() in suffixes
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


def _folders(directory: pathlib.Path) -> list[str]:
  """Names of the class folders, sorted; hidden and system ones are none."""
  return sorted(
    path.name
    for path in directory.iterdir()
    if path.is_dir() and not path.name.startswith(('.', '__'))
  )


def open_image(path: str | pathlib.Path, mode: str) -> Image.Image:
  """A picture file, decoded, as mode 'L' or 'RGB'.

  Raises:
    ValueError: naming the file, if it cannot be decoded or does not hold 8
      bits a channel.
  """
  try:
    with Image.open(path) as image:
      if image.mode not in MODES:
        raise ValueError(
          f'{path} is of mode {image.mode}; expected 8 bits a channel.'
        )
      return image.convert(mode)
  # What Pillow raises on damaged and on enormous files.
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise ValueError(f'{path} cannot be decoded: {e}') from e


def center_crop(image: Image.Image, size: int) -> np.ndarray:
  """The central square, scaled to `size`: uint8 [size, size(, 3)].

  The preprocessing of ADM (Dhariwal and Nichol, arXiv 2105.05233) that the
  field's reference statistics were made with: halve by box filter while the
  short side is at least twice too long, then bicubic, then crop.
  """
  while min(image.size) >= 2 * size:
    image = image.resize(
      (image.width // 2, image.height // 2), Image.Resampling.BOX
    )
  scale = size / min(image.size)
  image = image.resize(
    (round(image.width * scale), round(image.height * scale)),
    Image.Resampling.BICUBIC,
  )
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)))
