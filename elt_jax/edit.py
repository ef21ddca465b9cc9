"""Editing with a masked model: which tokens of an image stay.

Inpainting, outpainting and class-conditional editing are one thing: encode the
image, forget the tokens under the mask, and decode them again for a class.
"""

import pathlib

import numpy as np

from elt_jax.data.folders import open_image
from elt_jax.data.transforms import to_zero_one
from elt_jax.tokenizers.pretrained import Tokenizer


def read_image(
  path: str | pathlib.Path, size: int, channels: int
) -> np.ndarray:
  """uint8 [size, size, channels] of a picture file.

  Raises:
    ValueError: if it cannot be read or is not of that size.
  """
  image = open_image(path, 'L' if channels == 1 else 'RGB')
  if image.size != (size, size):
    raise ValueError(
      f'{path} is {image.width} x {image.height} pixels, the model draws '
      f'{size} x {size}: scale or crop it first.'
    )
  return np.asarray(image).reshape(size, size, channels)


def known_tokens(
  tokenizer: Tokenizer, image: np.ndarray, mask: np.ndarray
) -> np.ndarray:
  """Tokens of an image, -1 where the mask touches their cell.

  Args:
    tokenizer: of the model.
    image: uint8 [h, w, c].
    mask: bool [h, w], True where the image is to be drawn anew.

  Returns:
    int32 [h', w'].

  Raises:
    ValueError: if no token, or every token, is to be drawn.
  """
  tokens = tokenizer.encode(to_zero_one(image[None]))[0]
  h, w = tokens.shape
  cells = mask.reshape(h, mask.shape[0] // h, w, mask.shape[1] // w)
  redraw = cells.any((1, 3))
  if not redraw.any() or redraw.all():
    found = 'every' if redraw.all() else 'no'
    raise ValueError(
      f'The mask covers {found} token: white marks what is drawn anew, black '
      'what stays, and both are needed.'
    )
  return np.where(redraw, -1, tokens)
