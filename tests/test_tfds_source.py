"""Data sets that the library itself wrote, read without TensorFlow."""

import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from elt_jax import prepare as prepare_command
from elt_jax.data import pictures, sources, tfds_source
from tests import commands
from tests.conftest import tiny_config
from tests.test_pictures import scene

NAMES = ['cat', 'ant', 'bee', 'dog']  # As the data set has them: not sorted.


def picture(n):
  """Encoded pictures that differ in size and colour."""
  image = Image.fromarray(scene(20 + n, 33 - n) // (1 + n))
  file = io.BytesIO()
  image.convert('CMYK' if n == 3 else 'RGB').save(file, 'JPEG')
  return file.getvalue()


class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`sizes` examples of each split: pictures, or of `num_frames` frames."""

  VERSION = tfds.core.Version('1.0.0')
  num_frames, sizes, label = 0, {'train': 12, 'test': 5}, None
  unlabelled = False

  def _info(self):
    kind, feature = 'image', tfds.features.Image(shape=(None, None, 3))
    if self.num_frames:
      kind, feature = 'video', tfds.features.Sequence(feature)
    label = self.label or tfds.features.ClassLabel(names=NAMES)
    features = tfds.features.FeaturesDict({kind: feature, 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name) for name in self.sizes}

  def _generate_examples(self, split):
    for i in range(self.sizes[split]):
      # ImageNet's test images have no class.
      label = -1 if split == 'test' and self.unlabelled else i % 4
      frames = [picture((i + j) % 12) for j in range(self.num_frames)]
      example = {'video': frames} if frames else {'image': picture(i % 12)}
      yield i, example | {'label': label}


def prepare(root, name, file_format='array_record', **attributes):
  made = type(name, (Made,), attributes, skip_registration=True)
  made.name = name
  builder = made(data_dir=root, file_format=file_format)
  builder.download_and_prepare()
  return builder.data_path


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Pictures, and videos of seven frames."""
  root = tmp_path_factory.mktemp('tfds')
  prepare(root, 'pets')
  sizes = {'train': 3, 'validation': 4, 'test': 5}
  prepare(root, 'imagenet', sizes=sizes, unlabelled=True)
  prepare(root, 'both', sizes=sizes)
  videos = prepare(root, 'walks', num_frames=7)
  # The library's `Video` cannot be made without TensorFlow; it stores alike.
  features = json.loads((videos / 'features.json').read_text())
  features['featuresDict']['features']['video'] = {
    'pythonClassName': 'tensorflow_datasets.core.features.video_feature.Video',
    'video': {
      'shape': {'dimensions': ['-1', '-1', '-1', '3']},
      'dtype': 'uint8',
      'encodingFormat': 'jpeg',
    },
  }
  (videos / 'features.json').write_text(json.dumps(features))
  return root


@pytest.fixture(autouse=True)
def data_dir(root, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(root))


def configured(name, **changes):
  config = tiny_config()
  config.data.source = f'tfds:{name}'
  config.data.update({'num_channels': 3, 'image_size': 16} | changes)
  return config


def load(name, split='train', **changes):
  return sources.load_source(configured(name, **changes), split)


def cropped(n, channels=3):
  mode = pictures.mode_of(channels)
  return pictures.read(io.BytesIO(picture(n)), mode, 16)


@pytest.mark.parametrize('channels', [1, 3])
def test_images_are_those_of_the_library_cropped(root, channels):
  source = load('pets', num_channels=channels)
  assert source.class_names == NAMES and len(source) == 12
  # It stores them in an order of its own.
  encoded = tfds.builder_from_directory(root / 'pets' / '1.0.0').as_data_source(
    'train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  seen = set()
  for i in range(12):
    n = [picture(n) for n in range(12)].index(encoded[i]['image'])
    seen.add(n)
    np.testing.assert_array_equal(source[i]['image'], cropped(n, channels))
    assert source[i]['label'] == encoded[i]['label'] == n % 4
    assert source[i]['label'].dtype == np.int32
  assert seen == set(range(12))
  test = load('pets:1.0.0', 'test')
  assert sorted(test[i]['label'] for i in range(len(test))) == [0, 0, 1, 2, 3]


def test_validation_stands_for_a_test_split_without_labels():
  assert len(load('imagenet', 'test')) == 4
  # With labels it is the test split.
  assert len(load('both', 'test')) == 5


def test_clips_are_windows_of_frames():
  options = {'num_frames': 3, 'frame_stride': 2, 'windows': 3}
  source = load('walks', **options)
  assert len(source) == 36 and source.class_names == NAMES
  first = {i: set() for i in range(3)}
  for i in range(36):
    clip, video = source[i]['image'], int(source[i]['label'])
    frames = [n for n in range(12) if (clip[0] == cropped(n)).all()]
    start = (frames[0] - video) % 4
    first[i % 3].add(start)
    expected = [cropped((frames[0] + j) % 12) for j in (0, 2, 4)]
    np.testing.assert_array_equal(clip, expected)
  assert first == {0: {0}, 1: {1}, 2: {2}}
  views = [
    source.view(4, np.random.default_rng(seed))['image'] for seed in range(20)
  ]
  assert len({view.tobytes() for view in views}) == 3
  with pytest.raises(ValueError, match='1.0.0: example . of train has 7 frame'):
    load('walks', num_frames=8)


@pytest.mark.parametrize('format_', ['tfrecord', 'parquet'])
def test_other_formats_are_refused(root, tmp_path, monkeypatch, format_):
  directory = prepare(tmp_path, 'pets')
  info = json.loads((directory / 'dataset_info.json').read_text())
  info['fileFormat'] = format_
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(ValueError, match=f'{format_} files.*convert_format .*'):
    load('pets')
  # What that command leaves.
  info['alternativeFileFormats'] = ['array_record']
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  assert len(load('pets')) == 12


@pytest.mark.parametrize(
  'name,changes,message',
  [
    ('pets/', {}, r"must be 'tfds:NAME\[/CONFIG\]\[:VERSION\]'"),
    ('cats', {}, r'has nothing. .*`tfds build cats --file_format=array_rec'),
    ('pets:2.0.0', {}, 'tfds:pets:2.0.0 is not prepared in .*has 1.0.0. Set'),
    ('pets/big', {}, 'tfds:pets/big is not prepared'),
    ('pets', {'num_classes': 5}, 'has 4 classes, data.num_classes is 5'),
    ('pets', {'num_channels': 2}, 'not data.num_channels = 2'),
    ('pets', {'num_frames': 2}, "no 'video' of uint8.*num_frames = 1 reads"),
    ('walks', {}, r"no 'image' of uint8 .* \['label', 'video'\]"),
  ],
)
def test_what_is_not_there_is_named(name, changes, message):
  with pytest.raises(ValueError, match=message):
    load(name, **changes)


def test_data_sets_without_what_is_needed(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  directory = prepare(tmp_path, 'pets', sizes={'test': 5})
  with pytest.raises(ValueError, match=r"no split for 'train', but \['test'\]"):
    load('pets')
  (directory / 'label.labels.txt').unlink()
  assert load('pets', 'test').class_names == ['0', '1', '2', '3']
  (file,) = directory.glob('*.array_record*')
  data = file.read_bytes()
  file.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='is damaged'):
    load('pets', 'test')
  file.unlink()
  with pytest.raises(ValueError, match='lacks shards'):
    load('pets', 'test')
  (directory / 'features.json').write_text('{')
  with pytest.raises(ValueError, match='features.json is missing or damaged'):
    load('pets', 'test')
  prepare(tmp_path, 'ages', label=tfds.features.Scalar(np.int64))
  with pytest.raises(ValueError, match="no class label 'label'; its features"):
    load('ages')


def test_configs_and_versions(root, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  (tmp_path / 'pets' / 'big').mkdir(parents=True)
  for version in ('1.9.0', '1.10.0'):
    link = tmp_path / 'pets' / 'big' / version
    link.symlink_to(root / 'pets' / '1.0.0')
  assert len(load('pets')) == len(load('pets/big:1.9.0')) == 12
  assert tfds_source.find('pets').name == '1.10.0'
  (tmp_path / 'pets' / 'big').rename(tmp_path / 'pets' / 'small')
  (tmp_path / 'pets' / 'big').mkdir()
  (tmp_path / 'pets' / 'big' / '1.0.0').symlink_to(root / 'pets' / '1.0.0')
  with pytest.raises(ValueError, match=r"configs: \['big', 'small'\]. Name"):
    load('pets')


def test_damaged_pictures_are_passed_over(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

  def generate(self, split):
    for i in range(6):
      yield i, {'image': picture(i) if i else b'\xff\xd8 no', 'label': i % 4}

  prepare(tmp_path, 'pets', _generate_examples=generate)
  with pytest.raises(ValueError, match='cannot be decoded'):
    sources.in_memory(load('pets'))
  source = load('pets', skip_unreadable=True)
  whole = sources.in_memory(source)
  assert len(whole) == 6 and len(source.unreadable) == 1
  assert 'of 6 images so far' in caplog.text


# A TensorFlow that is there to be found, and ends the process that imports it.
WATCH = """
import importlib.machinery, sys
class Watch:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow':
      return importlib.machinery.ModuleSpec(name, self)
  def create_module(self, spec):
    raise SystemExit(f'{spec.name} is imported')
  def exec_module(self, module):
    pass
sys.meta_path.insert(0, Watch())
from configs.base import get_base
from elt_jax.data import sources
for name, frames in (('pets', 1), ('walks', 2)):
  c = get_base()
  c.data.source, c.data.num_frames = f'tfds:{name}', frames
  c.data.num_channels, c.data.num_classes = 3, 4
  for split in sources.SPLITS:
    sources.in_memory(sources.load_source(c, split))
assert 'tensorflow' not in sys.modules
"""


def test_tensorflow_is_never_imported():
  subprocess.run(
    [sys.executable, '-W', 'error', '-c', WATCH],
    cwd=commands.ROOT,
    check=True,
    timeout=120,
  )


def test_prepared_images_are_the_same(tmp_path):
  out = tmp_path / 'records'
  flags = ('--source=tfds:pets', f'--out={out}', '--image_size=16')
  commands.call(prepare_command, *flags, '--workers=1')
  config = configured('pets')
  config.data.source = f'records:{out}'
  for split in sources.SPLITS:
    there, given = sources.load_source(config, split), load('pets', split)
    assert there.class_names == NAMES and len(there) == len(given)
    for i in range(len(there)):
      np.testing.assert_array_equal(there[i]['image'], given[i]['image'])
      assert there[i]['label'] == given[i]['label']
