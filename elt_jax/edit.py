"""Editing with a masked model: which tokens of an image or a clip stay.

Inpainting, outpainting, class-conditional editing, and of clips prediction and
interpolation of frames, are one thing: encode what there is, forget the tokens
under the mask, and decode them again for a class.
"""

import pathlib
from typing import Any

import numpy as np

from elt_jax.data.clips import ClipSource
from elt_jax.data.pictures import open_image
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


def read_clip(path: str | pathlib.Path, config: Any) -> np.ndarray:
  """uint8 [f, h, w, c]: the central window of a video file, cropped.

  Raises:
    ValueError: naming the file, if it cannot be decoded or is too short.
  """
  d = config.data
  path = pathlib.Path(path)
  source = ClipSource(
    [(path, 0)],
    ['clip'],
    d.num_frames,
    d.image_size,
    d.num_channels,
    d.frame_stride,
  )
  return source.read(path, place=0.5)


def drawn_frames(task: str, tokenizer: Tokenizer) -> np.ndarray:
  """bool [f], True for the frames that a task draws.

  'predict:4' keeps the first four frames, 'interpolate:4' the first and the
  last four.

  Args:
    task: as above.
    tokenizer: of clips of f frames.

  Raises:
    ValueError: on another task, if it keeps or draws no frame, or if a token
      would be of both kinds.
  """
  num_frames = tokenizer.config.data.num_frames
  of_token = num_frames // tokenizer.grid[0]
  name, _, number = task.partition(':')
  given = int(number) if number.isdecimal() else 0
  kept = {'predict': given, 'interpolate': 2 * given}.get(name, 0)
  if not 0 < kept < num_frames or given % of_token:
    raise ValueError(
      f"--task is 'predict:N' or 'interpolate:N', with N given frames (at "
      f'either end), a multiple of the {of_token} that a token covers, and '
      f'some of {num_frames} left to draw; got {task!r}.'
    )
  drawn = np.ones(num_frames, bool)
  drawn[:given] = False
  if name == 'interpolate':
    drawn[-given:] = False
  return drawn


def fill_frames(clips: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """Clips whose drawn frames follow from the others: what a tokenizer sees.

  Its cells see beyond their frames, and nothing of what is to be drawn must
  come in that way. As in MAGVIT (arXiv 2212.05199, section 3.2): the last frame
  is repeated; between two, they are blended linearly.

  Args:
    clips: uint8 [..., f, h, w, c].
    drawn: bool [f].
  """
  given = np.flatnonzero(~drawn)
  filled = clips.copy()
  for i in np.flatnonzero(drawn):
    before, after = given[given < i][-1], given[given > i][:1]
    first = clips[..., before, :, :, :].astype(np.float32)
    if len(after):
      share = (i - before) / (after[0] - before)
      last = clips[..., after[0], :, :, :]
      first = (1 - share) * first + share * last
    filled[..., i, :, :, :] = np.rint(first)
  return filled


def tokens_of_task(
  tokenizer: Tokenizer, clips: np.ndarray, task: str, batch_size: int = 96
) -> np.ndarray:
  """Tokens of uint8 [n, f, h, w, c] clips, -1 where the task draws them.

  int32 [n, f', h', w'], a function of the frames that are given alone.
  """
  drawn = drawn_frames(task, tokenizer)
  mask = np.broadcast_to(drawn[:, None, None], clips.shape[1:-1])
  return known_tokens(tokenizer, fill_frames(clips, drawn), mask, batch_size)


def known_tokens(
  tokenizer: Tokenizer,
  images: np.ndarray,
  mask: np.ndarray,
  batch_size: int = 96,
) -> np.ndarray:
  """Tokens of images or clips, -1 where the mask touches their cell.

  Args:
    tokenizer: of the model.
    images: uint8 [n, (f,) h, w, c].
    mask: bool [(f,) h, w], True where they are to be drawn anew.
    batch_size: images encoded at a time.

  Returns:
    int32 [n, (f',) h', w'].

  Raises:
    ValueError: if no token, or every token, is to be drawn.
  """
  tokens = tokenizer.encode(to_zero_one(images), batch_size)
  split = [
    n
    for side, cells in zip(mask.shape, tokenizer.grid, strict=True)
    for n in (cells, side // cells)
  ]
  redraw = mask.reshape(split).any(tuple(range(1, 2 * mask.ndim, 2)))
  if not redraw.any() or redraw.all():
    found = 'every' if redraw.all() else 'no'
    raise ValueError(
      f'The mask covers {found} token: white marks what is drawn anew, black '
      'what stays, and both are needed.'
    )
  return np.where(redraw, -1, tokens)
