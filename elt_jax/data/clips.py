"""Clips of video files: windows of frames, decoded when they are asked for."""

from collections.abc import Iterator, Sequence
import contextlib
import os
from typing import Any

import av
from av.video.reformatter import VideoReformatter
import numpy as np
from PIL import Image

from elt_jax.data import pictures
from elt_jax.data.standins import StandIns

SUFFIXES = ('.mp4', '.avi', '.gif', '.webm', '.mkv', '.mov')
# Of a frame, which is four times 4K, and of its sides. Damaged headers promise
# more, and it is allocated: a thin frame, when it is scaled to its short side.
MAX_PIXELS, MAX_ASPECT = 2**25, 16
_LIMIT = {'max_pixels': str(MAX_PIXELS)}


def window(
  name: Any, found: int, place: float, num_frames: int, stride: int
) -> range:
  """The frames of a window at `place`, from 0 to below 1.

  Args:
    name: of the video, for messages.
    found: frames that it has.
    place: of the start, among those at which a whole window starts.
    num_frames: of a clip.
    stride: frames from one frame of a clip to the next.

  Raises:
    ValueError: if the video is too short.
  """
  span = (num_frames - 1) * stride + 1
  if found < span:
    raise ValueError(
      f'{name} has {found} frames, but data.num_frames = {num_frames} '
      f'at data.frame_stride = {stride} take {span}.'
    )
  start = int(place * (found - span + 1))
  return range(start, start + span, stride)


class Windows:
  """Windows of videos, by their place: {'image': uint8 [f, h, w, c], 'label'}.

  Example i is window i % windows of video i // windows. Any number of threads
  may read at once.

  Attributes:
    class_names: the label is the place in this list.
    unreadable: of the videos passed over so far, see `StandIns`.
  """

  def __init__(
    self,
    names: Sequence[Any],
    class_names: list[str],
    num_frames: int,
    size: int,
    channels: int,
    stride: int = 1,
    windows: int = 1,
    skip_unreadable: bool = False,
  ):
    """Opens no video.

    Args:
      names: of the videos, for messages.
      class_names: of the labels.
      num_frames: of a clip.
      size: pixels of a side of the square that frames are cropped to.
      channels: 1 or 3.
      stride: frames from one frame of a clip to the next; 1 takes each.
      windows: clips of a video, evenly spaced over it; 1 is the central one.
      skip_unreadable: whether the next readable video, in the order of the
        list and cyclically, stands in for one that is not.

    Raises:
      ValueError: on another number of channels.
    """
    self.class_names = class_names
    self._num_frames, self._stride = num_frames, stride
    self._size, self._mode = size, pictures.mode_of(channels)
    self._count, self._windows = len(names) * windows, windows
    self._stand_ins = StandIns(names, 'videos', skip_unreadable)
    self.unreadable = self._stand_ins.unreadable

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The same clip whenever it is asked for; raises as `view` does."""
    if not 0 <= index < len(self):
      raise IndexError(f'There are {len(self)} clips, and none {index}.')
    video, window = divmod(index, self._windows)
    return self._clip(video, (window + 0.5) / self._windows)

  def view(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """A window of the same video that starts anywhere, by `rng`.

    Raises:
      ValueError: naming the video, if it cannot be decoded or has too few
        frames; with `skip_unreadable`, if that is so of every video.
    """
    return self._clip(index // self._windows, rng.random())

  def _clip(self, video: int, place: float) -> dict[str, Any]:
    """The window at `place` of this video, or of the next that has one."""
    return self._stand_ins.read(video, lambda i: self.example(i, place))

  def example(self, video: int, place: float) -> dict[str, Any]:
    """The window at `place`, from 0 to below 1, of this very video.

    Raises:
      ValueError: naming the video, if it cannot be decoded or is too short.
    """
    raise NotImplementedError


class ClipSource(Windows):
  """Windows of video files.

  Attributes:
    labels: int32 [n], as listed; a clip that stands in for that of an
      unreadable video has its own.
  """

  def __init__(
    self,
    videos: Sequence[tuple[str | os.PathLike, int]],
    class_names: list[str],
    *args: Any,
    **kwargs: Any,
  ):
    """Opens no file.

    Args:
      videos: (path, label) of each.
      class_names: of the labels.
      *args: `num_frames` and on, of `Windows`.
      **kwargs: likewise.

    Raises:
      ValueError: if there is no video, or as `Windows`.
    """
    if not videos:
      raise ValueError('Clips need at least one video, got none.')
    paths = [path for path, _ in videos]
    super().__init__(paths, class_names, *args, **kwargs)
    self._videos = videos
    labels = np.array([label for _, label in videos], np.int32)
    self.labels = labels.repeat(self._windows)

  def example(self, video: int, place: float) -> dict[str, Any]:
    path, label = self._videos[video]
    return {'image': self.read(path, place), 'label': np.int32(label)}

  def read(self, path: str | os.PathLike, place: float) -> np.ndarray:
    """uint8 [f, h, w, c]: the window at `place`, from 0 to below 1.

    A function of the file and its arguments alone, or threads would differ.

    Raises:
      ValueError: naming the file, if it cannot be decoded or is too short.
      OSError: if the file is gone or cannot be reached.
    """
    try:
      # Headers may lie or be silent on it, and packets are counted in no time.
      with _opened(path) as (container, stream):
        found = sum(packet.size > 0 for packet in container.demux(stream))
      while True:
        wanted = window(path, found, place, self._num_frames, self._stride)
        frames, decoded = self._window(path, wanted)
        if len(frames) == self._num_frames:
          return np.stack(frames)
        found = decoded  # All there are: some packets gave no frame.
    # Titles that are not UTF-8 do not open, before PyAV 19.
    except (av.FFmpegError, UnicodeDecodeError) as e:
      # FFmpeg says of damage, too, that it cannot read or has no memory. A file
      # that is gone, or a disk in trouble, says nothing of the video.
      _read_through(path)
      raise ValueError(f'{path} cannot be decoded: {e}.') from e

  def _window(
    self, path: str | os.PathLike, wanted: range
  ) -> tuple[list[np.ndarray], int]:
    """(frames of the clip, number of frames decoded on the way).

    Decodes from the start, as seeking is not exact in every format, and stops
    when the clip is whole.
    """
    frames, decoded = [], 0
    convert = VideoReformatter()
    with _opened(path) as (container, stream):
      for decoded, frame in enumerate(container.decode(stream), 1):
        if decoded - 1 not in wanted:
          continue
        _check_size(path, frame.width, frame.height)
        rgb = convert.reformat(frame, format='rgb24', threads=1)
        image = Image.fromarray(rgb.to_ndarray()).convert(self._mode)
        upright = image.rotate(frame.rotation, expand=True)
        pixels = pictures.center_crop(upright, self._size)
        frames.append(pixels.reshape(self._size, self._size, -1))
        if len(frames) == self._num_frames:
          break
    return frames, decoded


@contextlib.contextmanager
def _opened(
  path: str | os.PathLike,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
  """A file and its video, to be decoded by the thread that asks.

  Raises:
    ValueError: naming the file, if it has no video, or as `_check_size`.
    av.FFmpegError: if it is no video file.
  """
  # A packet cut short would be decoded to half a frame.
  options = _LIMIT | {'fflags': '+discardcorrupt'}
  # Of a:b/c.mp4 FFmpeg would take a for a protocol.
  with av.open(os.path.abspath(path), options=options) as container:
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
      raise ValueError(f'{path} has no video that FFmpeg decodes.')
    codec = streams[0].codec_context
    _check_size(path, codec.width, codec.height)
    # Frames may be larger than the header says.
    codec.options = _LIMIT
    codec.thread_count = 1
    yield container, streams[0]


def _read_through(path: str | os.PathLike) -> None:
  """Raises OSError if the file cannot be read."""
  with open(path, 'rb') as file:
    while file.read(2**20):
      pass


def _check_size(path: str | os.PathLike, width: int, height: int) -> None:
  """Raises ValueError, naming the file, on frames that are no picture."""
  short, long = sorted((width, height))
  if not 0 < long <= MAX_ASPECT * short or width * height > MAX_PIXELS:
    # What FFmpeg refuses by itself has the size 0 x 0.
    size = f'{width} x {height}' if long else 'unknown or enormous size'
    raise ValueError(
      f'{path} has frames of {size}; at most {MAX_PIXELS:,} pixels and sides '
      f'of 1:{MAX_ASPECT} are read.'
    )
