"""Moving MNIST: clips of digits that move and bounce, made on the fly.

After Srivastava et al. (arXiv 1502.04681): a digit starts anywhere, moves
straight by a tenth of its free path a frame, in any direction, and is reflected
at the walls. In clips of 64 x 64, as theirs, a digit is the whole image of
28 x 28 with its margin; in ours of 32 x 32 it is the 20 x 20 pixels that MNIST
draws in, so that it can be read and still has a way to go. Where two digits
overlap, the brighter pixel shows.
"""

import itertools
from typing import Any

import numpy as np

# Of the free path of a digit, a frame.
SPEED = 0.1
SIZES = (32, 64)
# MNIST scales every digit to a box of this side (LeCun et al., 1998).
BOX = 20


def class_names(digits: int) -> list[str]:
  """'0'..'9', or the 55 pairs '0+0', '0+1', ... '9+9' in either order."""
  pairs = itertools.combinations_with_replacement('0123456789', digits)
  return ['+'.join(pair) for pair in pairs]


def boxed(image: np.ndarray) -> np.ndarray:
  """uint8 [28, 28, 1] -> [20, 20, 1], the ink in its middle.

  Raises:
    ValueError: if the ink is wider or higher than that.
  """
  box = np.zeros((BOX, BOX, 1), np.uint8)
  rows, columns = (np.flatnonzero(image.any((a, 2))) for a in (1, 0))
  if not len(rows):
    return box
  ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  h, w, _ = ink.shape
  if max(h, w) > BOX:
    raise ValueError(
      f'A digit of MNIST is at most {BOX} x {BOX} pixels of ink, got {h} x {w}.'
    )
  y, x = (BOX - h) // 2, (BOX - w) // 2
  box[y : y + h, x : x + w] = ink
  return box


class MovingDigits:
  """Clips of one or two moving digits.

  Attributes:
    class_names: of the labels: which digits are in the clip.
    labels: int32 [n], of the clips of `__getitem__`.
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
    num_frames: int,
    digits: int = 1,
    windows: int = 1,
    seed: int = 0,
  ):
    """Prepares the digits; clips are made when they are asked for.

    Args:
      images: uint8 [n, 28, 28, 1], as MNIST's: ink within 20 x 20 pixels.
      labels: int [n], the digit of each image.
      size: of a frame's side, 32 or 64.
      num_frames: of a clip.
      digits: in a clip, 1 or 2.
      windows: clips of each image, of different motion.
      seed: of those motions.

    Raises:
      ValueError: on another size; for 32, on an image with more ink.
    """
    if size not in SIZES:
      raise ValueError(
        f'Moving MNIST has frames of side {SIZES}, got data.image_size = '
        f'{size}.'
      )
    if size == 32:
      images = np.stack([boxed(image) for image in images])
    self._images, self._digit = images, labels
    self._size, self._num_frames, self._digits = size, num_frames, digits
    self._windows, self._seed = windows, seed
    self.class_names = class_names(digits)
    self.labels = np.array(
      [self._cast(i, self._rng(i))[1] for i in range(len(self))], np.int32
    )

  def __len__(self) -> int:
    return self._windows * len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The clip of this place, the same whenever it is asked for."""
    return self.view(index, self._rng(index))

  def view(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """The digit of this place, with company and motion drawn from `rng`."""
    cast, label = self._cast(index, rng)
    clip = np.zeros((self._num_frames, self._size, self._size, 1), np.uint8)
    for image in cast:
      side = len(image)
      for frame, (y, x) in zip(clip, self._path(self._size - side, rng)):
        place = frame[y : y + side, x : x + side]
        np.maximum(place, image, out=place)
    return {'image': clip, 'label': label}

  def _rng(self, index: int) -> np.random.Generator:
    return np.random.default_rng([self._seed, index])

  def _cast(
    self, index: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.int32]:
    """(images of the digits, label) of a clip."""
    others = rng.integers(len(self._images), size=self._digits - 1)
    chosen = [index // self._windows, *others]
    pair = sorted(str(d) for d in self._digit[chosen])
    return self._images[chosen], np.int32(
      self.class_names.index('+'.join(pair))
    )

  def _path(self, free: int, rng: np.random.Generator) -> np.ndarray:
    """int [f, 2], the upper left corner in each frame, within 0..free."""
    angle = rng.uniform(0, 2 * np.pi)
    velocity = SPEED * np.array([np.sin(angle), np.cos(angle)])
    straight = rng.uniform(size=2) + np.outer(
      np.arange(self._num_frames), velocity
    )
    reflected = np.abs((straight + 1) % 2 - 1)
    return np.rint(free * reflected).astype(int)
