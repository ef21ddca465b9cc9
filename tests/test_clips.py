"""Videos: windows, cropping, damaged files, class folders, threads."""

from concurrent import futures
import itertools
import pathlib
import struct
import threading
import types

import av
import jax
import numpy as np
from PIL import Image
import pytest

from elt_jax import validation
from elt_jax.data import clips, pictures, pipeline, sources
from tests.conftest import tiny_config

CODECS = {'.gif': ('gif', 'rgb8'), '.webm': ('libvpx', 'yuv420p')}
LAST = types.SimpleNamespace(random=lambda: 1 - 2**-53)  # The latest start.


def write(path, frames, change=lambda i, packet: None):
  """A video of uint8 [h, w, 3] frames, or of gray ones that tell their number.

  `change` may write into the packets before they are stored.
  """
  if isinstance(frames, int):
    levels = 20 + 4 * np.arange(frames, dtype=np.uint8)
    frames = [np.full((48, 64, 3), level) for level in levels]
  path.parent.mkdir(parents=True, exist_ok=True)
  codec, pixels = CODECS.get(path.suffix, ('mpeg4', 'yuv420p'))
  with av.open(str(path), 'w') as file:
    stream = file.add_stream(codec, rate=25)
    stream.height, stream.width, _ = frames[0].shape
    stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
    images = (av.VideoFrame.from_ndarray(frame) for frame in frames)
    packets = (p for image in (*images, None) for p in stream.encode(image))
    for i, packet in enumerate(packets):
      data = bytearray(packet)
      change(i, data)
      if data != bytes(packet):
        packet.update(data)
      file.mux(packet)
  return path


def numbers(example):
  return np.rint((example['image'].mean((1, 2, 3)) - 20) / 4).astype(int)


def source(*paths, num_frames=4, size=16, channels=1, **options):
  videos = [(path, label) for label, path in enumerate(paths)]
  names = [path.stem for path in paths]
  return clips.ClipSource(videos, names, num_frames, size, channels, **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Eight videos of 12 frames in four classes, half of them for testing."""
  root = tmp_path_factory.mktemp('videos')
  for i, split in enumerate(('train', 'test')):
    for name in 'abcd':
      write(root / split / name / f'{i}.avi', 12)
  return root


def configured(name, **changes):
  config = tiny_config()
  config.data.source, config.data.num_frames = name, 4
  config.data.update(changes)
  return config


@pytest.mark.parametrize('suffix', ['.avi', '.mp4', '.gif', '.webm', '.mov'])
def test_windows_are_spaced_evenly_over_the_video(tmp_path, suffix):
  path = write(tmp_path / f'a{suffix}', 40)
  centre = source(path, stride=3)
  assert len(centre) == 1 and centre[0]['image'].shape == (4, 16, 16, 1)
  assert centre[0]['image'].dtype == np.uint8
  np.testing.assert_array_equal(numbers(centre[0]), [15, 18, 21, 24])
  three = source(path, path, stride=3, windows=3)
  np.testing.assert_array_equal(three.labels, [0, 0, 0, 1, 1, 1])
  assert [numbers(three[i])[0] for i in range(6)] == 2 * [5, 15, 25]
  assert three[5]['label'] == 1 and three[5]['label'].dtype == np.int32
  with pytest.raises(IndexError):
    three[6]


def test_views_start_anywhere_by_their_generator(tmp_path):
  clip = source(write(tmp_path / 'a.avi', 12), stride=3, windows=2)
  draw = lambda seed: numbers(clip.view(1, np.random.default_rng(seed)))
  starts = [draw(seed)[0] for seed in range(40)]
  assert set(starts) == {0, 1, 2} and starts[7] == draw(7)[0]
  np.testing.assert_array_equal(draw(7), starts[7] + 3 * np.arange(4))


@pytest.mark.parametrize('height,width', [(35, 47), (47, 35), (16, 16)])
def test_frames_are_cropped_as_pictures_are(tmp_path, height, width):
  y, x = np.mgrid[:height, :width]
  frame = np.stack([4 * x, 4 * y, 3 * (x + y)], -1).astype(np.uint8)
  path = write(tmp_path / 'a.avi', [frame] * 2)
  for channels, mode in ((3, 'RGB'), (1, 'L')):
    clip = source(path, num_frames=2, channels=channels)[0]['image']
    expected = pictures.center_crop(Image.fromarray(frame).convert(mode), 16)
    assert clip.shape == (2, 16, 16, channels)
    error = clip.astype(int) - expected.reshape(16, 16, channels)
    assert np.abs(error).mean() < 6 and np.abs(error.mean()) < 3


def test_frames_of_a_phone_held_upright_are_turned(tmp_path):
  frame = np.zeros((32, 64, 3), np.uint8)
  frame[:, :32] = 255  # To be shown above.
  path = write(tmp_path / 'a.mp4', [frame] * 2)
  data = path.read_bytes()
  matrix = lambda *values: struct.pack('>9i', *values, 0, 0, 2**30)
  header, one = data.index(b'tkhd'), 2**16
  place = data.index(matrix(one, 0, 0, 0, one, 0), header)
  turned = matrix(0, one, 0, -one, 0, 0)
  path.write_bytes(data[:place] + turned + data[place + len(turned) :])
  image = source(path, num_frames=1, size=32)[0]['image'][0]
  assert image[:14].min() > 235 and image[18:].max() < 20


def test_what_a_cut_file_still_has_is_read(tmp_path):
  path = write(tmp_path / 'a.avi', 40)
  data = path.read_bytes()
  path.write_bytes(data[: (data.index(b'movi') + data.index(b'idx1')) // 2])
  last = numbers(source(path).view(0, LAST))
  # Whole frames to the end: a half one would repeat the one before.
  assert 5 < last[0] < 36 and (np.diff(last) == 1).all()


def test_packets_without_a_frame_are_no_frames(tmp_path):
  def hide(i, packet):
    if i >= 30:
      packet[0] &= ~16  # VP8 decodes it and does not show it.

  clip = source(write(tmp_path / 'a.webm', 40, hide), windows=2)
  np.testing.assert_array_equal(numbers(clip[0]), [9, 10, 11, 12])
  np.testing.assert_array_equal(numbers(clip.view(0, LAST))[-1], 29)


def test_a_colon_in_a_path_is_no_protocol(tmp_path, monkeypatch):
  write(tmp_path / 'a:b' / 'c.avi', 12)
  monkeypatch.chdir(tmp_path)
  assert source(pathlib.Path('a:b/c.avi'))[0]['image'].any()


def enormous(path):
  write(path, 12)
  data = bytearray(path.read_bytes())
  data[6:10] = struct.pack('<HH', 15_000, 15_000)
  path.write_bytes(data)


def grown(path):
  def grow(i, packet):
    if i == 0:  # VP8 has the size in its key frames.
      packet[6:10] = struct.pack('<HH', 8000, 8000)

  write(path, 12, grow)


def thin(path):
  write(path, [np.zeros((2, 2000, 3), np.uint8)] * 12)


def headless(path):
  write(path, 12)
  data = path.read_bytes()
  path.write_bytes(data[: data.index(b'moov')])


def foreign(path):
  write(path, 12)
  path.write_bytes(path.read_bytes().replace(b'FMP4', b'ZZZZ'))


def silent(path):
  with av.open(str(path), 'w') as file:
    stream = file.add_stream('pcm_s16le', rate=8000, layout='mono')
    sound = np.zeros((1, 800), np.int16)
    frame = av.AudioFrame.from_ndarray(sound, 's16', 'mono')
    frame.rate = 8000
    file.mux(stream.encode(frame))


def cut(path):
  write(path, 12)
  path.write_bytes(path.read_bytes()[:360])


def coded(path):
  """With an impossible size of LZW's codes in the second frame."""
  write(path, 12)
  data = bytearray(path.read_bytes())
  start = data.index(b'\x21\xf9\x04', data.index(b'\x21\xf9\x04') + 1) + 8
  table = 3 << (data[start + 9] % 8 + 1) if data[start + 9] & 128 else 0
  data[start + 10 + table] = 255
  path.write_bytes(data)


@pytest.mark.parametrize(
  'name,make,message',
  [
    ('short.avi', lambda path: write(path, 9), 'has 9 frames, .*= 3 take 10'),
    ('short.gif', lambda path: write(path, 1), 'has 1 frames'),
    (
      'junk.avi',
      lambda path: path.write_bytes(b'?' * 999),
      'cannot be decoded',
    ),
    ('empty.mp4', lambda path: path.write_bytes(b''), 'cannot be decoded'),
    ('headless.mp4', headless, 'cannot be decoded'),
    ('silent.mkv', silent, 'has no video'),
    ('foreign.avi', foreign, 'has no video that FFmpeg decodes'),
    ('enormous.gif', enormous, 'unknown or enormous size'),
    ('grown.webm', grown, 'cannot be decoded: Invalid argument'),
    ('thin.gif', thin, 'frames of 2000 x 2'),
    # Of both FFmpeg says what it would of a disk or of rights.
    ('cut.webm', cut, 'cannot be decoded'),
    ('coded.gif', coded, 'cannot be decoded'),
  ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, make, message):
  make(tmp_path / name)
  with pytest.raises(ValueError, match=message) as error:
    source(tmp_path / name, stride=3)[0]
  assert str(tmp_path / name) in str(error.value)
  assert 'set data.skip_unreadable=True' in str(error.value)


@pytest.mark.parametrize('skip', [True, False])
def test_a_file_that_is_gone_is_no_damaged_file(tmp_path, skip):
  """Passed over, it would make clips depend on when it went."""
  there = write(tmp_path / 'a.avi', 12)
  clip = source(there, tmp_path / 'gone.avi', skip_unreadable=skip)
  assert len(clip) == 2 and clip[0]['image'].any()
  with pytest.raises(FileNotFoundError, match='gone.avi'):
    clip[1]
  assert not clip.unreadable


@pytest.fixture
def damaged(tmp_path):
  """Five videos, of which the first, second and last are unreadable."""
  paths = [tmp_path / f'{i}.avi' for i in range(5)]
  for i, path in enumerate(paths):
    write(path, 2 if i == 1 else 12)
  for path in (paths[0], paths[4]):
    path.write_bytes(b'?' * 999)
  return paths


def test_unreadable_files_are_passed_over_and_counted(damaged, caplog):
  clip = source(*damaged, windows=2, skip_unreadable=True)
  # The next in the list, from the last on the first, with its label.
  assert [clip[i]['label'] for i in range(0, 10, 2)] == [2, 2, 2, 3, 2]
  np.testing.assert_array_equal(clip[9]['image'], clip[5]['image'])
  np.testing.assert_array_equal(
    clip.view(0, np.random.default_rng(1))['image'],
    clip.view(4, np.random.default_rng(1))['image'],
  )
  assert list(clip.unreadable) == [damaged[i] for i in (0, 1, 4)]
  assert 'has 2 frames' in clip.unreadable[damaged[1]]
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == 3
  assert str(damaged[4]) in messages[2] and '3 of 5 videos' in messages[2]
  whole = sources.in_memory(clip)
  np.testing.assert_array_equal(whole.labels[::2], [2, 2, 2, 3, 2])
  with pytest.raises(ValueError, match='None of the 2 .*4.avi cannot be'):
    source(damaged[4], damaged[1], skip_unreadable=True)[1]


def test_a_file_damaged_at_its_end_gives_its_first_windows(tmp_path):
  def break_off(i, packet):
    if i == 30:
      packet[:] = b'?' * len(packet)

  paths = write(tmp_path / 'a.webm', 40, break_off), tmp_path / 'b.avi'
  write(paths[1], 40)
  clip = source(*paths, windows=2, skip_unreadable=True)
  for _ in range(2):  # In whatever order they are asked for.
    assert [clip[i]['label'] for i in (1, 0)] == [1, 0]
  assert list(clip.unreadable) == [paths[0]]


def test_threads_read_what_one_reader_reads(damaged, caplog):
  serial = source(*damaged, skip_unreadable=True)
  shared = source(*damaged, skip_unreadable=True)
  jobs = [(i % 5, seed) for seed, i in enumerate(range(60))]
  read = lambda clip, i, seed: clip.view(i, np.random.default_rng(seed))
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda job: read(shared, *job), jobs))
  for job, example in zip(jobs, found, strict=True):
    expected = read(serial, *job)
    np.testing.assert_array_equal(example['image'], expected['image'])
    assert example['label'] == expected['label']
  assert len(caplog.records) == 6 and shared.unreadable == serial.unreadable


def test_a_file_found_unreadable_twice_at_once_is_counted_once(
  damaged, caplog, monkeypatch
):
  clip = source(*damaged[:3], skip_unreadable=True)
  read, both = clip.read, threading.Barrier(2, timeout=10)

  def together(path, place):
    both.wait()
    return read(path, place)

  monkeypatch.setattr(clip, 'read', together)
  with futures.ThreadPoolExecutor(2) as pool:
    examples = list(pool.map(clip.__getitem__, (0, 0)))
  assert [example['label'] for example in examples] == [2, 2]
  assert len(caplog.records) == len(clip.unreadable) == 2


def test_class_folders_through_the_config(folder):
  config = configured(f'clips:{folder}', frame_stride=2, windows=3)
  train = sources.load_source(config, 'train')
  test = sources.load_source(config, 'test')
  assert train.class_names == list('abcd') and len(train) == len(test) == 12
  np.testing.assert_array_equal(train.labels, np.arange(12) // 3)
  assert [numbers(test[i]).tolist() for i in (0, 1)] == [
    [1, 3, 5, 7],
    [3, 5, 7, 9],
  ]
  config.data.num_classes = 3
  with pytest.raises(ValueError, match='4 classes, .* is 3'):
    sources.load_source(config, 'train')


def test_undivided_class_folders_hold_out_one_in_twenty(folder, tmp_path):
  for i in range(40):
    path = tmp_path / 'abcd'[i % 4] / f'{i}.AVI'
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(folder / 'train' / 'a' / '0.avi')
  (tmp_path / 'a' / 'picture.png').touch()
  config = configured(f'clips:{tmp_path}')
  sizes = [len(sources.load_source(config, s)) for s in sources.SPLITS]
  assert sizes == [38, 2]


@pytest.mark.parametrize(
  'change,message',
  [
    ({'source': 'clips:/nowhere'}, 'no directory /nowhere'),
    ({'source': 'clips:configs'}, r'has no videos: expected CLASS/\*.mp4'),
    ({'num_channels': 2}, 'not data.num_channels = 2'),
    ({'num_frames': 1}, r'shape \(1, 8, 8, 1\), but the config'),
    ({'num_frames': 13}, 'a/0.avi has 12 frames'),
  ],
)
def test_what_does_not_fit_the_config_is_refused(folder, change, message):
  with pytest.raises(ValueError, match=message):
    sources.load_source(configured(f'clips:{folder}', **change), 'train')


def test_pictures_are_no_clips(tmp_path):
  (tmp_path / 'a').mkdir()
  for i in range(2):
    Image.new('L', (8, 8)).save(tmp_path / 'a' / f'{i}.png')
  config = configured(f'folder:{tmp_path}', num_classes=1)
  with pytest.raises(ValueError, match=r'shape \(8, 8, 1\), .*num_frames'):
    sources.load_source(config, 'train')


@pytest.mark.parametrize(
  'key,value', [('frame_stride', 0), ('windows', 0), ('ucf_split', '4')]
)
def test_values_that_do_not_fit_are_named(key, value):
  with pytest.raises(ValueError, match=f'data.{key} must be'):
    validation.validate(configured('clips:x', **{key: value}))


def test_batches_are_those_of_any_readers_and_of_a_resumed_run(folder, mesh):
  config = configured(f'clips:{folder}', windows=4, flip=True)
  config.train.batch_size = 8
  clip = sources.load_source(config, 'train')
  dataset = pipeline.build_dataset(config, clip)
  sharding = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))

  def read(start, stop, threads):
    batches = pipeline.batches(dataset, sharding, 8, start, threads)
    return list(itertools.islice(batches, stop - start))

  straight = read(0, 6, 0)
  for start, threads in ((0, 1), (0, 2), (3, 2), (5, 0)):
    for a, b in zip(straight[start:], read(start, 6, threads), strict=True):
      for key in a:
        np.testing.assert_array_equal(a[key], b[key])
  # Windows are drawn anew: those of a later epoch start elsewhere.
  starts = [
    {int(numbers({'image': np.asarray(x)})[0]) for x in batch['image']}
    for batch in straight
  ]
  assert set.union(*starts) == set(range(9))
