"""One picture: decoded, brought to 1 or 3 channels, scaled and cropped."""

import os
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

# Looked for in the file, whatever its name. Pillow knows forty, and would run
# Ghostscript on one of them.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
# What a picture may be stored as; others would be clipped or misread.
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
_DEEP = ('I', 'I;16', 'I;16B', 'I;16L')  # 16 bits, a PNG's, of gray.
# Of a picture that is scaled to its short side: a thin one would be enormous.
_MAX_PIXELS = 2**25


def mode_of(channels: int) -> str:
  """Pillow's name of pixels of 1 or 3 channels, 'L' or 'RGB'.

  Raises:
    ValueError: on another number.
  """
  if channels not in (1, 3):
    raise ValueError(
      f'Images have 1 or 3 channels, not data.num_channels = {channels}.'
    )
  return 'L' if channels == 1 else 'RGB'


def read(
  file: str | os.PathLike | BinaryIO, mode: str, size: int, name: Any = None
) -> np.ndarray:
  """uint8 [size, size, channels]: the central square of a picture.

  Args:
    file: its path, or what it holds.
    mode: see `mode_of`.
    size: pixels of a side.
    name: of the picture in messages; default: its path.

  Raises:
    ValueError: as `open_image`, or if it is too thin to be scaled.
  """
  image = open_image(file, mode, name)
  if size**2 * max(image.size) > _MAX_PIXELS * min(image.size):
    raise ValueError(
      f'{name or file} has {image.width} x {image.height} pixels: too thin '
      f'for its short side to become {size} pixels.'
    )
  return center_crop(image, size).reshape(size, size, -1)


def open_image(
  file: str | os.PathLike | BinaryIO, mode: str, name: Any = None
) -> Image.Image:
  """A picture, decoded, as mode 'L' or 'RGB'; what is transparent shows.

  Raises:
    ValueError: naming the picture, if it cannot be decoded or does not hold 8
      or 16 bits a channel.
    OSError: if the file is gone or cannot be reached.
  """
  try:
    with Image.open(file, formats=_FORMATS) as image:
      converted = _convert(image, mode)
  # What Pillow raises on damaged and on enormous files.
  except (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
  ) as e:
    # A machine in trouble says nothing of the picture.
    if isinstance(e, OSError) and e.errno is not None:
      raise
    raise ValueError(f'{name or file} cannot be decoded: {e}') from e
  if converted is None:
    raise ValueError(
      f'{name or file} is of mode {image.mode}; expected 8 or 16 bits a '
      'channel.'
    )
  return converted


def _convert(image: Image.Image, mode: str) -> Image.Image | None:
  """None of what cannot be brought to 8 bits."""
  if image.mode in _DEEP:
    # Pillow would clip, or drop the low bits.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
      return None
    image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
  elif image.mode not in MODES:
    return None
  elif image.mode in ('P', 'PA'):
    # Straight to RGB, Pillow warns of colours that are transparent in parts.
    image = image.convert('RGBA')
  return image.convert(mode)


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
