"""Data sets scaled and cropped once: whole, resumed, and the same pixels."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
from PIL import Image
import pytest

from configs import mnist_diffusion
from elt_jax import prepare
from elt_jax.data import records, shards, sources
from tests import commands
from tests.conftest import tiny_config
from tests.test_pictures import scene

NAMES = [f'n0{n}' for n in range(10)]
KINDS = ('RGB', 'L', 'CMYK')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """60 JPEGs in ten classes, a tenth of them to test on; one is no JPEG."""
  root = tmp_path_factory.mktemp('pictures')
  for i in range(60):
    split = 'train' if i < 50 else 'val'
    path = root / split / NAMES[i % 10] / f'{i:02d}.JPEG'
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(scene(30 + i, 70 - i) // (1 + i))
    image.convert(KINDS[i % 7 // 2 % 3]).save(path, quality=95)
  (root / 'train' / 'n04' / '24.JPEG').write_bytes(b'no picture')
  return root


def flags(folder, out, *more):
  return [
    f'--source=folder:{folder}',
    f'--out={out}',
    '--image_size=16',
    '--examples_per_shard=12',
    '--skip_unreadable',
    *more,
  ]


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  out = tmp_path_factory.mktemp('records') / 'whole'
  commands.call(prepare, *flags(folder, out, '--workers=1'))
  return out


def configured(name, **changes):
  config = tiny_config()
  changes = {'num_channels': 3, 'image_size': 16, 'num_classes': 10} | changes
  config.data.update({'source': name, 'skip_unreadable': True} | changes)
  return config


def contents(out):
  return {path.name: path.read_bytes() for path in out.iterdir()}


def test_records_are_what_the_folder_gives(folder, whole, caplog):
  for split, count in (('train', 50), ('test', 10)):
    there, given = (
      sources.load_source(configured(name), split)
      for name in (f'records:{whole}', f'folder:{folder}')
    )
    assert there.class_names == given.class_names == NAMES
    assert len(there) == len(given) == count
    for i in range(count):
      a, b = there[i], given[i]
      assert a['image'].dtype == np.uint8 and a['label'].dtype == np.int32
      np.testing.assert_array_equal(a['image'], b['image'])
      assert a['label'] == b['label']
  # By the folder alone: records have the next image in its place.
  assert len(caplog.records) == 1 and '24.JPEG' in caplog.text


def test_gray_records(folder, tmp_path):
  out = tmp_path / 'gray'
  more = ('--workers=1', '--num_channels=1', '--examples_per_shard=100')
  commands.call(prepare, *flags(folder, out, *more))
  there, given = (
    sources.load_source(configured(name, num_channels=1), 'test')
    for name in (f'records:{out}', f'folder:{folder}')
  )
  for i in range(10):
    np.testing.assert_array_equal(there[i]['image'], given[i]['image'])


def test_training_on_records_is_training_on_the_folder(folder, whole, tmp_path):
  changes = {
    'data.image_size': 16,
    'data.num_channels': 3,
    'data.flip': True,
    'data.skip_unreadable': True,
    'model.width': 16,
    'model.num_layers': 1,
    'model.patch_size': 4,
    'model.num_heads': 2,
    'model.max_loops': 2,
    'train.num_steps': 2,
    'train.batch_size': 16,
    'train.log_every_steps': 1,
    'train.telemetry_every_steps': 0,
    'train.sample_every_steps': 0,
  }
  logs = []
  for name in (f'records:{whole}', f'folder:{folder}'):
    workdir = tmp_path / name.partition(':')[0]
    source = {'data.source': name}
    commands.trained(mnist_diffusion, changes | source, workdir)
    logs.append(commands.timeless(commands.metrics(workdir)))
  assert logs[0] == logs[1] and logs[0][-1]['step'] == 2


def test_what_is_there_is_left_alone_and_anything_else_refused(folder, whole):
  before = contents(whole)
  commands.call(prepare, *flags(folder, whole))
  for changed, message in (
    ('--image_size=8', r'holds another cache \(image_size: 16 there, 8 here\)'),
    (f'--source=folder:{folder}/', r'holds another cache \(source: folder:'),
    ('--noskip_unreadable', 'skip_unreadable: True there, False here'),
  ):
    with pytest.raises(ValueError, match=message):
      commands.call(prepare, *flags(folder, whole, changed))
  assert contents(whole) == before


def test_what_was_lost_is_made_again(folder, whole, tmp_path):
  out = shutil.copytree(whole, tmp_path / 'out')
  (out / 'train-00001.array_record').unlink()
  commands.call(prepare, *flags(folder, out, '--workers=1'))
  assert contents(out) == contents(whole)


def test_one_process_writes_at_a_time(folder, whole, tmp_path):
  out = shutil.copytree(whole, tmp_path / 'out')
  (out / 'train-00001.array_record').unlink()
  metadata = json.loads((out / 'metadata.json').read_text())
  with shards.writing(out, metadata) as left:
    assert [path.name for _, path, _ in left] == ['train-00001.array_record']
    with pytest.raises(ValueError, match='is being written by another process'):
      commands.call(prepare, *flags(folder, out))


def test_a_shard_damaged_inside_is_named(tmp_path):
  """It opens, since its footer is whole."""
  path, rng = tmp_path / 'train-00000.array_record', np.random.default_rng(0)
  shards.write(path, (rng.bytes(3000) for _ in range(50)))
  data = bytearray(path.read_bytes())
  data[40_000:40_200] = bytes(200)
  path.write_bytes(data)
  found, damaged = shards.Records([path], 50), 0
  for i in range(50):
    try:
      assert len(found[i]) == 3000
    except ValueError as e:
      damaged += 1
      assert str(e).startswith(f'{tmp_path}: record {i} is damaged')
  assert damaged


def test_an_unreadable_image_ends_the_command_by_name(folder, tmp_path):
  arguments = flags(folder, tmp_path / 'out', '--noskip_unreadable')
  with pytest.raises(ValueError, match='24.JPEG cannot be decoded.*skip_unr'):
    commands.call(prepare, *arguments, '--workers=2')


def children(process):
  task = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  return [int(pid) for pid in task.read_text().split()]


def wait_for(condition):
  for _ in range(1200):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError('Not in a minute.')


@pytest.fixture
def release(folder):
  """Holds the shard that waits for a picture, until this is called."""
  held = folder / 'train' / 'n03' / '03.JPEG'
  image = held.read_bytes()
  held.unlink()
  os.mkfifo(held)

  def release():
    held.unlink()
    held.write_bytes(image)

  yield release
  if held.is_fifo():
    release()


def test_killed_and_started_again(folder, whole, release, tmp_path):
  """Of workers or the command itself."""
  out = tmp_path / 'out'
  arguments = flags(folder, out, '--workers=2')
  whole_shards = lambda: sorted(out.glob('[a-z]*.array_record'))

  process = commands.start('prepare', *arguments)
  wait_for(lambda: len(whole_shards()) == 5)  # Of six.
  made = {path: path.stat().st_mtime_ns for path in whole_shards()}
  for pid in children(process):
    os.kill(pid, signal.SIGKILL)
  err = process.communicate(timeout=60)[1]
  assert process.returncode == 2
  assert 'A worker process was killed. Start the same command again' in err
  with pytest.raises(ValueError, match='same elt_jax.prepare command again'):
    sources.load_source(configured(f'records:{out}'), 'train')

  process = commands.start('prepare', *arguments)
  # What the killed worker left is gone before there are others.
  wait_for(lambda: len(children(process)) > 1 and list(out.glob('.train-*')))
  workers = children(process)
  process.kill()
  process.communicate()
  wait_for(lambda: not any(os.path.exists(f'/proc/{p}') for p in workers))

  release()
  _, err = commands.run('prepare', *arguments)
  assert err.count('Passed over.') == 1 and '24.JPEG' in err
  assert '60/60' in err  # The five shards of before count.
  assert not (out / 'unfinished.json').exists()
  assert contents(out) == contents(whole)
  assert (
    made.items() <= {p: p.stat().st_mtime_ns for p in whole_shards()}.items()
  )


@pytest.mark.usefixtures('release')
def test_ctrl_c_ends_command_and_workers_without_a_traceback(folder, tmp_path):
  out = tmp_path / 'out'
  process = commands.start('prepare', *flags(folder, out, '--workers=2'))
  wait_for(lambda: len(list(out.glob('[a-z]*.array_record'))) == 5)
  workers = children(process)
  for pid in (process.pid, *workers):  # As a terminal sends it, to all.
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGINT)
  err = process.communicate(timeout=60)[1]
  assert process.returncode and 'Traceback' not in err, err
  wait_for(lambda: not any(os.path.exists(f'/proc/{p}') for p in workers))


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'source': 'records:/nowhere'}, 'make it with python -m elt_jax.prepare'),
    ({'num_classes': 9}, 'has 10 classes, data.num_classes is 9'),
    ({'image_size': 8}, r'shape \(16, 16, 3\), but the config asks for \(8'),
    ({'num_channels': 1}, r'shape \(16, 16, 3\), but the config'),
  ],
)
def test_records_that_do_not_fit_are_refused(whole, changes, message):
  config = configured(f'records:{whole}', **changes)
  with pytest.raises(ValueError, match=message):
    sources.load_source(config, 'train')


def test_damaged_records_are_named(whole, tmp_path, monkeypatch):
  source = records.RecordSource(whole, 'test')
  good = source._records[3]
  for record, message in (
    (b'\x0a' + good[1:], r'example 3 of test has label 10; expected one below'),
    (good[:40], 'example 3 of test cannot be decoded'),
    (b'', 'example 3 of test cannot be decoded'),
    (
      records._encode({'image': np.zeros((8, 8, 3), np.uint8), 'label': 1}),
      r'example 3 of test is of \(8, 8\) pixels, expected 16',
    ),
  ):
    monkeypatch.setattr(source, '_records', {3: record})
    with pytest.raises(ValueError, match=message):
      source[3]


@pytest.mark.parametrize(
  'arguments,message',
  [
    (['--source=folder:x'], '--out is required'),
    (['--out=x'], '--source is required'),
    (['--source=mnist', '--out=x'], "'folder:DIR' or 'tfds:NAME', got 'mnist'"),
    (['--source=folder:x', '--out=gs://a/b'], '--out must be a directory'),
    (['--source=folder:/nowhere', '--out=x'], 'no directory /nowhere'),
  ],
)
def test_wrong_flags_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    commands.call(prepare, *arguments)
