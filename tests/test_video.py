"""Clips to watch: layout, files that read back, film strips, the command."""

import types

from absl import flags
import av
from av.video.reformatter import Colorspace
import jax
import numpy as np
from PIL import Image, ImageSequence
import pytest

from elt_jax import checkpoint, sample, video, viz
from elt_jax import config as config_lib
from elt_jax.data import sources
from elt_jax.evals import reconstruction
from elt_jax.mesh import build_mesh
from elt_jax.models import build_model
from elt_jax.preview import build_preview
from tests.conftest import tiny_config
from tests.helpers import ONE_DEVICE, Stack, initial, masked_config, noisy

GREY = 128


def noise(*shape, high=256):
  return np.random.default_rng(0).integers(0, high, shape, np.uint8)


def moving(f, h, w, color):
  """A square that moves over another colour, in blocks that codecs keep."""
  frames = np.full((f, h, w, 3), (20, 60, 120), np.uint8)
  for i, frame in enumerate(frames):
    frame[: h // 2, 2 * i : 2 * i + h // 2] = color
  return frames


def read_gif(path):
  """(uint8 [f, h, w, 3], milliseconds of each frame, loops)."""
  with Image.open(path) as image:
    frames = [
      (np.asarray(frame.convert('RGB')), frame.info['duration'])
      for frame in ImageSequence.Iterator(image)
    ]
    pixels, milliseconds = zip(*frames, strict=True)
    return np.stack(pixels), list(milliseconds), image.info.get('loop')


def read_mp4(path):
  """(uint8 [f, h, w, 3], frames a second, codec context)."""
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    assert stream.pix_fmt == 'yuv420p'
    frames = [frame.to_ndarray(format='rgb24') for frame in file.decode(stream)]
    return np.stack(frames), stream.average_rate, stream.codec_context


@pytest.mark.parametrize('channels,scale', [(1, 1), (3, 4)])
def test_pictures_keep_their_place_size_and_colours(channels, scale):
  # No grey and no black, to tell pictures from the background and the labels.
  clips = 150 + noise(2, 3, 5, 16, 24, channels, high=100)
  frames = video.side_by_side(clips, ['L = 1', 'mid-peak'], list('012'), scale)
  assert frames.dtype == np.uint8 and frames.shape[0] == 5
  filled = (frames[0] >= 150).all(-1)
  ys = np.flatnonzero(filled.any(1)).reshape(2, 16 * scale)
  xs = np.flatnonzero(filled.any(0)).reshape(3, 24 * scale)
  assert filled.sum() == ys.size * xs.size
  for row, y in zip(clips, ys, strict=True):
    assert np.ptp(y) == len(y) - 1
    for clip, x in zip(row, xs, strict=True):
      assert np.ptp(x) == len(x) - 1
      got = frames[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
      large = clip.repeat(scale, 1).repeat(scale, 2)
      np.testing.assert_array_equal(got, np.broadcast_to(large, got.shape))


def ink(frame):
  """bool [H, W]: where a label is written, on a picture or beside it."""
  return (frame < GREY).all(-1)


@pytest.mark.parametrize('long', ['y', 'HandstandPushups ' * 3])
def test_labels_stand_apart_from_pictures_and_each_other(long):
  clips = np.full((2, 2, 1, 12, 12, 1), 255, np.uint8)
  (frame,) = video.side_by_side(clips, ['L = 1', long], [long, long])
  white, black = (frame == 255).all(-1), ink(frame)
  assert white.sum() == clips.size
  ys, xs = (np.flatnonzero(white.any(axis)).reshape(2, 12) for axis in (1, 0))
  top, left = ys[0, 0], xs[0, 0]
  # Labels lie above the columns and to the left of the rows, and only there.
  assert not black[top:, left - 2 :].any() and not black[top - 2 : top].any()
  # They are whole: nothing is written on the margin of the frame.
  edge = np.concatenate([black[0], black[-1], black[:, 0], black[:, -1]])
  assert not edge.any()
  above, beside = (
    np.flatnonzero(black[:top].any(0)),
    top + np.flatnonzero(black[top:, :left].any(1)),
  )
  for found, places in ((above, xs), (beside, ys)):
    middle = (places[0].mean() + places[1].mean()) / 2
    first, second = found[found < middle], found[found > middle]
    assert second[0] - first[-1] > 4
    # In the middle of their pictures, but for ascents and descents.
    for part, place in ((first, places[0]), (second, places[1])):
      assert abs((part[0] + part[-1]) / 2 - place.mean()) <= 3.5


def test_rows_lower_than_their_labels_are_moved_apart():
  clips = np.full((3, 1, 1, 4, 4, 1), 255, np.uint8)
  (frame,) = video.side_by_side(clips, ['L = 1', 'L = 2', 'L = 3'], [''])
  written = np.flatnonzero(ink(frame).any(1))
  lines = np.split(written, np.flatnonzero(np.diff(written) > 2) + 1)
  ys = np.flatnonzero((frame == 255).all(-1).any(1)).reshape(3, 4)
  for line, y in zip(lines, ys, strict=True):
    assert abs((line[0] + line[-1]) / 2 - y.mean()) <= 3.5


def test_labels_are_as_sharp_on_enlarged_pictures():
  clips = np.zeros((1, 1, 1, 8, 8, 1), np.uint8)
  small, large = (
    video.side_by_side(clips, ['L = 4'], ['0'], scale)[0] for scale in (1, 8)
  )
  written = lambda frame: (frame[:, :30] < GREY).all(-1).sum()
  assert 30 < written(small) == written(large)


@pytest.mark.parametrize(
  'shape,rows,columns,message',
  [
    ((1, 1, 2, 4, 4, 2), 'a', 'b', '1 or 3 channels can be shown, got 2'),
    ((1, 2, 2, 4, 4, 1), 'ab', 'ab', '1 x 2 clips need as many labels, got 2'),
  ],
)
def test_clips_that_cannot_be_laid_out(shape, rows, columns, message):
  with pytest.raises(ValueError, match=message):
    video.side_by_side(np.zeros(shape, np.uint8), rows, columns)


@pytest.mark.parametrize('colours', ['greys', 'few'])
def test_gifs_read_back_exactly(tmp_path, colours):
  frames = moving(9, 17, 40, (230, 30, 60))
  if colours == 'greys':  # All 256.
    frames = noise(9, 17, 40, 1).repeat(3, -1)
  video.save_clip(tmp_path / 'a.gif', frames, fps=8)
  got, milliseconds, loop = read_gif(tmp_path / 'a.gif')
  np.testing.assert_array_equal(got, frames)
  assert loop == 0 and set(milliseconds) == {120, 130}
  # The rate is kept, though the unit of a .gif is 10 ms.
  assert sum(milliseconds) == pytest.approx(9 * 125, abs=5)


@pytest.mark.parametrize('pixels', [2**24, 3000])  # Of 6,400.
def test_gifs_of_many_colours_do_not_flicker(tmp_path, monkeypatch, pixels):
  monkeypatch.setattr(video, '_PALETTE_PIXELS', pixels)
  rows, columns = np.mgrid[:40, :40]
  still = np.stack([6 * rows, 6 * columns, 3 * (rows + columns)], -1)
  frames = still.astype(np.uint8)[None].repeat(4, 0)
  frames[:, :4, :4] = 60 * np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
  video.save_clip(tmp_path / 'a.gif', frames, fps=8)
  got = read_gif(tmp_path / 'a.gif')[0]
  assert np.abs(got.astype(int) - frames).mean() < 6
  assert (got[:, 4:] == got[0, 4:]).all()


def test_frames_that_do_not_change_keep_their_time(tmp_path):
  frames = noise(2, 8, 8, 1).repeat(3, -1).repeat(3, 0)
  video.save_clip(tmp_path / 'a.gif', frames, fps=10)
  got, milliseconds, _ = read_gif(tmp_path / 'a.gif')
  np.testing.assert_array_equal(got, frames[::3])
  assert milliseconds == [300, 300]


@pytest.mark.parametrize('codec', ['h264', 'mpeg4'])
@pytest.mark.parametrize('sides', [(64, 96), (65, 97)])
def test_mp4s_read_back(tmp_path, monkeypatch, codec, sides):
  if codec == 'mpeg4':
    monkeypatch.setattr(av, 'codecs_available', {'mpeg4'})
  elif 'libx264' not in av.codecs_available:
    pytest.skip('This PyAV has no h264 encoder.')
  frames = moving(10, *sides, (230, 30, 60))
  video.save_clip(tmp_path / 'a.mp4', frames, fps=12)
  got, rate, context = read_mp4(tmp_path / 'a.mp4')
  even = tuple(side + side % 2 for side in sides)
  assert context.name == codec and rate == 12 and got.shape == (10, *even, 3)
  if codec == 'h264':  # The other has no place for it.
    assert context.colorspace == Colorspace.ITU601
  h, w = sides
  difference = np.abs(got[:, :h, :w].astype(int) - frames)
  assert difference.mean() < 3
  # Far from edges, where chroma is halved, colours are right.
  inside = difference[:, 4:24, 22:28]
  assert inside.max() < 12
  assert np.abs(got[:, h:].astype(int) - GREY).max(initial=0) < 40


@pytest.mark.parametrize(
  'name,shape,message',
  [
    ('a.avi', (2, 8, 8, 3), 'is a .gif or .mp4 file, not .*a.avi'),
    ('a.gif', (2, 8, 8, 1), r'must be \[f, h, w, 3\], got \(2, 8, 8, 1\)'),
    ('a.mp4', (8, 8, 3), r'must be \[f, h, w, 3\], got \(8, 8, 3\)'),
  ],
)
def test_files_that_cannot_be_written(tmp_path, name, shape, message):
  with pytest.raises(ValueError, match=message):
    video.save_clip(tmp_path / name, np.zeros(shape, np.uint8), fps=8)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['a.gif', 'a.mp4'])
def test_a_clip_is_whole_or_not_there(tmp_path, monkeypatch, name):
  path = tmp_path / name
  path.write_bytes(b'of before')
  write = {'a.gif': '_write_gif', 'a.mp4': '_write_mp4'}[name]

  def half(path, frames, fps):
    path.write_bytes(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(video, write, half)
  with pytest.raises(OSError, match='disk full'):
    video.save_clip(path, noise(2, 8, 8, 3), fps=8)
  assert [p.name for p in tmp_path.iterdir()] == [name]
  assert path.read_bytes() == b'of before'


def test_film_strips_hold_the_versions_of_a_clip_together():
  # Frame 2 of clip 1 of version 1 is of the colour 112.
  numbers = np.arange(2)[:, None, None] * 100 + np.arange(2)[:, None] * 10
  samples = (numbers + np.arange(3)).astype(np.uint8)[..., None, None, None]
  picture = viz.versions(samples)
  assert picture.shape == (2 * (2 * 3 + 2), 3 * 3 + 2, 3)
  assert picture[2::3, 2::3, 0].tolist()[:2] == [[0, 1, 2], [100, 101, 102]]
  below = picture[8:]
  assert below[2::3, 2::3, 0].tolist() == [[10, 11, 12], [110, 111, 112]]
  assert (picture[6:10] == GREY).all()  # Twice the gap between two versions.
  assert (picture[3:5] == GREY).all() and (picture[2, 3:5] == GREY).all()
  images = viz.versions(samples[:, :, 0])
  assert images[2::3, 2::3, 0].tolist() == [[0, 10], [100, 110]]


def clip_config():
  c = tiny_config()
  c.data.num_frames, c.model.patch_frames, c.model.max_loops = 4, 2, 2
  c.sample.num_steps = 2
  return c


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir of a model of clips of 4 x 8 x 8 pixels."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  config = clip_config()
  config_lib.claim_workdir(config, workdir)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    state = Stack(config).create()
    checkpoints.save(state.replace(ema=noisy(state.ema, 0.3)))
  return workdir


def picture(path):
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


def command(*args):
  values = flags.FlagValues()
  sample._define(values)
  values(['sample', *args])
  sample.main(values)


def strips(clips, versions):
  """(height, width, 3) of film strips of 4 frames of 8 x 8 pixels."""
  return clips * (versions * 10 + 2), 4 * 10 + 2, 3


def test_samples_play_side_by_side_or_lie_in_strips(trained, tmp_path, capsys):
  out = {suffix: tmp_path / f'a{suffix}' for suffix in ('.gif', '.mp4', '.png')}
  for path in out.values():
    args = (f'--workdir={trained}', f'--out={path}', '--num=3', '--labels=2,1')
    command(*args, '--loops=1,constant:avg=1.5', '--scale=3', '--fps=5')
  assert (
    'loops 1, constant:avg=1.5 from top to bottom' in capsys.readouterr().out
  )
  cells = picture(out['.png'])[::3, ::3]
  assert cells.shape == strips(3, 2)
  frames, milliseconds, _ = read_gif(out['.gif'])
  assert milliseconds == [200] * 4
  # The same clips: what the strips hold, with the labels around it.
  clips = np.stack(
    [
      [
        [cells[y + 2 : y + 10, x + 2 : x + 10, :1] for x in range(0, 40, 10)]
        for y in (22 * n + 10 * row for n in range(3))
      ]
      for row in range(2)
    ]
  )
  want = video.side_by_side(
    clips,
    ['L = 1', 'constant:avg=1.5'],
    ['class 2', 'class 1', 'class 2'],
    scale=3,
  )
  np.testing.assert_array_equal(frames, want)
  lossy, rate, _ = read_mp4(out['.mp4'])
  h, w = want.shape[1:3]
  assert rate == 5 and len(lossy) == 4
  assert np.abs(lossy[:, :h, :w].astype(int) - want).mean() < 6


def test_one_schedule_of_clips_is_a_strip_per_sample(trained, tmp_path):
  path = tmp_path / 'a.png'
  command(f'--workdir={trained}', f'--out={path}', '--num=5', '--scale=1')
  assert picture(path).shape == strips(5, 1)


@pytest.mark.parametrize(
  'frames,args,message',
  [
    (1, ['--out=a.gif'], 'must end in .png for a model of images, got a.gif'),
    (1, ['--out=a.mp4'], 'must end in .png for a model of images, got a.mp4'),
    (
      4,
      ['--out=a.avi'],
      '.png or .gif or .mp4 for a model of clips, got a.avi',
    ),
    (4, ['--fps=0', '--out=a.gif'], '--fps must be in 1..50, got 0'),
    (4, ['--scale=0'], '--scale must be at least 1, got 0'),
    (4, ['--edit=a', '--mask=a'], "No such file or directory: 'a'"),
  ],
)
def test_the_command_refuses_before_it_draws(
  monkeypatch, frames, args, message
):
  config = tiny_config()
  config.data.num_frames = frames
  # It has nothing to draw with.
  config.model.family = 'masked'
  draw = types.SimpleNamespace(
    config=config, tokenizer=object(), plans=lambda *args: None
  )
  monkeypatch.setattr(sample, 'load', lambda *args, **changes: (draw, None, 0))
  with pytest.raises((ValueError, OSError)) as error:
    command('--workdir=none', *args)
  assert message in str(error.value)


def test_a_run_of_clips_draws_strips_at_every_loop_count(trained):
  config, model, mesh, params, _ = sample.restore(str(trained))
  shown = build_preview(config, model, mesh, None)(params)
  assert shown.shape == strips(2, 2)
  first = [shown[2 + 10 * n : 10 + 10 * n, 2:-2] for n in range(2)]
  assert np.ptp(first[0]) > 0 and (first[0] != first[1]).any()


def tokenizer_config():
  c = masked_config(tiny_config())
  c.model.family, c.data.source = 'tokenizer', 'synthetic'
  c.data.num_frames, c.data.image_size = 4, 8
  c.tokenizer.channel_multipliers = (1, 1)
  c.tokenizer.temporal_downsample = (True,)
  return c


def test_a_tokenizer_of_clips_shows_them_over_their_reconstructions():
  config = tokenizer_config()
  model = build_model(config)
  mesh = build_mesh(ONE_DEVICE, jax.devices()[:1])
  shown = build_preview(config, model, mesh, None)(initial(model))
  assert shown.shape == strips(2, 2)
  # The class is a bright bar: in the upper rows of the first and second clip.
  for clip, row in ((0, 0), (22, 2)):
    original, made = (shown[clip + n : clip + n + 8, 2:10, 0] for n in (2, 12))
    bright = np.flatnonzero((original == 255).all(1))
    assert row in bright and (original != made).any()


def test_reconstructions_of_clips_are_strips_under_the_originals(monkeypatch):
  class Darker:
    config, fingerprint, grid = tokenizer_config(), '0', (2, 4, 4)

    def encode(self, x):
      self.x = x
      return np.zeros((len(x), *self.grid), np.int32)

    def reconstruct(self, tokens):
      return self.x / 2

  # What is measured against the data set is not of interest.
  monkeypatch.setattr(sources, 'fit_in_memory', lambda *found: False)
  _, shown = reconstruction.evaluate(Darker(), 7)
  assert shown.shape == strips(6, 2)
  for clip in range(0, 6 * 22, 22):
    original, made = (
      shown[clip + n : clip + n + 8, 2:10].astype(int) for n in (2, 12)
    )
    assert np.abs(original - 2 * made).max() <= 1 < np.ptp(original)
