"""Clips of video files: windows of frames, decoded when they are asked for."""

from collections.abc import Iterator, Sequence
import contextlib
import logging
import pathlib
import threading
from typing import Any

import av
from av.video.reformatter import VideoReformatter
import numpy as np
from PIL import Image

from elt_jax.data.folders import center_crop

SUFFIXES = ('.mp4', '.avi', '.gif', '.webm', '.mkv', '.mov')
# Of a frame, which is four times 4K, and of its sides. Damaged headers promise
# more, and it is allocated: a thin frame, when it is scaled to its short side.
MAX_PIXELS, MAX_ASPECT = 2**25, 16
_LIMIT = {'max_pixels': str(MAX_PIXELS)}

log = logging.getLogger(__name__)


class ClipSource:
  """Windows of videos: {'image': uint8 [f, h, w, c], 'label': int32}.

  Example i is window i % windows of video i // windows. Any number of threads
  may read at once.

  Attributes:
    class_names: the label is the place in this list.
    labels: int32 [n], as listed; a clip that stands in for that of an
      unreadable video has its own.
    unreadable: path -> reason, of the videos passed over so far, be it for one
      window.
  """

  def __init__(
    self,
    videos: Sequence[tuple[pathlib.Path, int]],
    class_names: list[str],
    num_frames: int,
    size: int,
    channels: int,
    stride: int = 1,
    windows: int = 1,
    skip_unreadable: bool = False,
  ):
    """Opens no file.

    Args:
      videos: (path, label) of each.
      class_names: of the labels.
      num_frames: of a clip.
      size: pixels of a side of the square that frames are cropped to.
      channels: 1 or 3.
      stride: frames from one frame of a clip to the next; 1 takes each.
      windows: clips of a video, evenly spaced over it; 1 is the central one.
      skip_unreadable: whether the next readable video, in the order of the
        list and cyclically, stands in for one that is not.

    Raises:
      ValueError: if there is no video, or on another number of channels.
    """
    if not videos or channels not in (1, 3):
      raise ValueError(
        f'Clips need at least one video, got {len(videos)}, and have 1 or 3 '
        f'channels, not data.num_channels = {channels}.'
      )
    self._videos, self.class_names = videos, class_names
    self._num_frames, self._stride = num_frames, stride
    self._size, self._mode = size, 'L' if channels == 1 else 'RGB'
    self._windows, self._skip = windows, skip_unreadable
    labels = np.array([label for _, label in videos], np.int32)
    self.labels = labels.repeat(windows)
    self.unreadable: dict[pathlib.Path, str] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The same clip whenever it is asked for; raises as `view` does."""
    if not 0 <= index < len(self):
      raise IndexError(f'There are {len(self)} clips, and none {index}.')
    video, window = divmod(index, self._windows)
    return self._clip(video, (window + 0.5) / self._windows)

  def view(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """A window of the same video that starts anywhere, by `rng`.

    Raises:
      ValueError: naming the file, if it cannot be decoded or has too few
        frames; with `skip_unreadable`, if that is so of every file.
    """
    return self._clip(index // self._windows, rng.random())

  def _clip(self, video: int, place: float) -> dict[str, Any]:
    """The window at `place` of this video, or of the next that has one."""
    for i in range(len(self._videos)):
      path, label = self._videos[(video + i) % len(self._videos)]
      # One passed over before is tried again: a file may be damaged for some
      # windows only, and what the clip is must not depend on earlier ones.
      try:
        return {'image': self.read(path, place), 'label': np.int32(label)}
      except ValueError as e:
        if not self._skip:
          raise ValueError(
            f'{e} Replace the file, or set data.skip_unreadable=True to pass '
            'over all such files.'
          ) from e
        self._pass_over(path, str(e))
    raise ValueError(
      f'None of the {len(self._videos)} videos can be read: '
      f'{self.unreadable[self._videos[0][0]]}'
    )

  def _pass_over(self, path: pathlib.Path, reason: str) -> None:
    with self._lock:
      if path in self.unreadable:  # Another reader was first.
        return
      self.unreadable[path] = reason
      log.warning(
        '%s Passed over, with %d of %d videos so far.',
        reason,
        len(self.unreadable),
        len(self._videos),
      )

  def read(self, path: pathlib.Path, place: float) -> np.ndarray:
    """uint8 [f, h, w, c]: the window at `place`, from 0 to below 1.

    A function of the file and its arguments alone, or threads would differ.

    Raises:
      ValueError: naming the file, if it cannot be decoded or is too short.
    """
    span = (self._num_frames - 1) * self._stride + 1
    try:
      # Headers may lie or be silent on it, and packets are counted in no time.
      with _opened(path) as (container, stream):
        found = sum(packet.size > 0 for packet in container.demux(stream))
      while found >= span:
        start = int(place * (found - span + 1))
        frames, decoded = self._window(
          path, range(start, start + span, self._stride)
        )
        if len(frames) == self._num_frames:
          return np.stack(frames)
        found = decoded  # All there are: some packets gave no frame.
    # Titles that are not UTF-8 do not open, before PyAV 19.
    except (av.FFmpegError, UnicodeDecodeError) as e:
      # A file that is gone, or a machine in trouble, says nothing of the video.
      if isinstance(e, OSError | MemoryError):
        raise
      raise ValueError(f'{path} cannot be decoded: {e}.') from e
    raise ValueError(
      f'{path} has {found} frames, but data.num_frames = {self._num_frames} '
      f'at data.frame_stride = {self._stride} take {span}.'
    )

  def _window(
    self, path: pathlib.Path, wanted: range
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
        pixels = center_crop(upright, self._size)
        frames.append(pixels.reshape(self._size, self._size, -1))
        if len(frames) == self._num_frames:
          break
    return frames, decoded


@contextlib.contextmanager
def _opened(
  path: pathlib.Path,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
  """A file and its video, to be decoded by the thread that asks.

  Raises:
    ValueError: naming the file, if it has no video, or as `_check_size`.
    av.FFmpegError: if it is no video file.
  """
  # A packet cut short would be decoded to half a frame.
  options = _LIMIT | {'fflags': '+discardcorrupt'}
  with av.open(str(path), options=options) as container:
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
      raise ValueError(f'{path} has no video that FFmpeg decodes.')
    codec = streams[0].codec_context
    _check_size(path, codec.width, codec.height)
    # Frames may be larger than the header says.
    codec.options = _LIMIT
    codec.thread_count = 1
    yield container, streams[0]


def _check_size(path: pathlib.Path, width: int, height: int) -> None:
  """Raises ValueError, naming the file, on frames that are no picture."""
  short, long = sorted((width, height))
  if not 0 < long <= MAX_ASPECT * short or width * height > MAX_PIXELS:
    # What FFmpeg refuses by itself has the size 0 x 0.
    size = f'{width} x {height}' if long else 'unknown or enormous size'
    raise ValueError(
      f'{path} has frames of {size}; at most {MAX_PIXELS:,} pixels and sides '
      f'of 1:{MAX_ASPECT} are read.'
    )
