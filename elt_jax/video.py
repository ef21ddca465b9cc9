"""Clips for people to watch: labelled side by side, as .gif or .mp4."""

from collections.abc import Sequence
import math

import av
from av.video.reformatter import Colorspace
from etils import epath
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elt_jax import files, viz

SUFFIXES = ('.gif', '.mp4')
# Pixels between pictures, and between a picture and its label.
_GAP = 4
_GREY = 128
# Pixels that a palette is made of: Pillow's sums of colours overflow beyond.
_PALETTE_PIXELS = 2**24


def side_by_side(
  clips: np.ndarray,
  row_labels: Sequence[str],
  column_labels: Sequence[str],
  scale: int = 1,
) -> np.ndarray:
  """Frames in which all clips play at once, on grey; of images, a picture.

  Labels move pictures apart where they are the larger, and are never cut.

  Args:
    clips: uint8 [rows, columns, (f,) h, w, c].
    row_labels: a line of text each, to the left of the rows.
    column_labels: likewise, above the columns.
    scale: how many pixels wide a pixel of the clips becomes.

  Returns:
    uint8 [(f,) H, W, 3].

  Raises:
    ValueError: unless c is 1 or 3, and there is a label per row and column.
  """
  if clips.ndim == 5:
    still = clips[:, :, None]
    return side_by_side(still, row_labels, column_labels, scale)[0]
  rows, columns, num_frames, *size, channels = clips.shape
  if channels not in (1, 3):
    raise ValueError(
      f'Only clips of 1 or 3 channels can be shown, got {channels}.'
    )
  if (len(row_labels), len(column_labels)) != (rows, columns):
    raise ValueError(
      f'{rows} x {columns} clips need as many labels, got {len(row_labels)} x '
      f'{len(column_labels)}.'
    )
  h, w = (scale * side for side in size)
  # In proportion to pictures that a player scales down to the screen.
  font = ImageFont.load_default(max(13, h // 12))
  height = sum(font.getmetrics())
  widest = lambda labels: math.ceil(max(map(font.getlength, labels)))
  top, left = height + 2 * _GAP, widest(row_labels) + 2 * _GAP
  down = max(h, height) + _GAP
  across = max(w, widest(column_labels) + 2 * _GAP) + _GAP
  canvas = Image.new(
    'RGB', (left + columns * across, top + rows * down), (_GREY,) * 3
  )
  pen = ImageDraw.Draw(canvas)
  ys = [top + y * down + (down - _GAP - h) // 2 for y in range(rows)]
  xs = [left + x * across + (across - _GAP - w) // 2 for x in range(columns)]
  for y, label in zip(ys, row_labels):
    pen.text((left - _GAP, y + h / 2), label, 'black', font, 'rm')
  for x, label in zip(xs, column_labels):
    pen.text((x + w / 2, _GAP), label, 'black', font, 'ma')
  frames = np.asarray(canvas)[None].repeat(num_frames, 0)
  for row, y in zip(clips, ys):
    for clip, x in zip(row, xs):
      frames[:, y : y + h, x : x + w] = clip.repeat(scale, 1).repeat(scale, 2)
  return frames


def save(path: epath.PathLike, picture: np.ndarray, fps: int = 8) -> None:
  """Writes uint8 [h, w, 3] as a .png, or [f, h, w, 3] as `save_clip`."""
  if picture.ndim == 4:
    return save_clip(path, picture, fps)
  viz.save_png(path, picture)


def save_clip(path: epath.PathLike, frames: np.ndarray, fps: int) -> None:
  """Writes a .gif, which loops for ever, or an .mp4, whole or not at all.

  A .gif has 256 colours: greys are exact, and so are as few others in all but
  huge files. A frame like the one before is stored as a longer one. An .mp4 has
  even sides: odd ones are padded with grey.

  Args:
    path: where to.
    frames: uint8 [f, h, w, 3].
    fps: frames a second; browsers slow a .gif of more than 50.

  Raises:
    ValueError: on another suffix or number of channels.
  """
  path = epath.Path(path)
  if path.suffix not in SUFFIXES:
    raise ValueError(f'A clip is a {" or ".join(SUFFIXES)} file, not {path}.')
  if frames.ndim != 4 or frames.shape[-1] != 3:
    raise ValueError(f'Frames must be [f, h, w, 3], got {frames.shape}.')
  write = _write_gif if path.suffix == '.gif' else _write_mp4
  with files.replacing(path) as temporary:
    write(temporary, frames, fps)


def _write_gif(path: epath.Path, frames: np.ndarray, fps: int) -> None:
  # The unit is 10 ms: rounded one by one, durations would drift off `fps`.
  ends = np.rint(100 * np.arange(len(frames) + 1) / fps)
  first, *others = _with_palette(frames)
  first.save(
    path,
    format='GIF',
    save_all=True,
    append_images=others,
    duration=(10 * np.diff(ends)).astype(int).tolist(),
    loop=0,
  )


def _with_palette(frames: np.ndarray) -> list[Image.Image]:
  """Frames of at most 256 colours, the same in all: others would flicker."""
  if (frames == frames[..., :1]).all():
    return [Image.fromarray(frame) for frame in frames[..., 0]]
  f, h, w, _ = frames.shape
  rows = frames.reshape(f * h, w, 3)
  step = -(-f * h * w // _PALETTE_PIXELS)
  whole = Image.fromarray(rows[::step]).quantize()
  if step > 1:  # Dots of dithering would crawl.
    none = Image.Dither.NONE
    whole = Image.fromarray(rows).quantize(palette=whole, dither=none)
  return [whole.crop((0, i * h, w, (i + 1) * h)) for i in range(f)]


def _write_mp4(path: epath.Path, frames: np.ndarray, fps: int) -> None:
  _, h, w, _ = frames.shape
  even = ((0, 0), (0, h % 2), (0, w % 2), (0, 0))
  frames = np.pad(frames, even, constant_values=_GREY)
  h264 = 'libx264' in av.codecs_available
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(
      'libx264' if h264 else 'mpeg4',
      rate=fps,
      options={'crf': '17'} if h264 else {'qmin': '1', 'qmax': '3'},
    )
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    # What the conversion gives; players guess another one for large frames.
    stream.codec_context.colorspace = Colorspace.ITU601
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
    container.mux(stream.encode())
