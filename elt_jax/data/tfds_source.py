"""Data sets prepared by TensorFlow Datasets, read without TensorFlow.

    $TFDS_DATA_DIR/NAME[/CONFIG]/VERSION/    as `tfds build NAME
                                             --file_format=array_record` left it

An example has a 'label' with names, and an 'image' or, as frames, a 'video'.
What is stored of it are encoded pictures, decoded here as those of folders are:
the library itself decodes no video without TensorFlow.
"""

import io
import json
import os
import pathlib
import re
from typing import Any

from google.protobuf import json_format, message
import numpy as np

from elt_jax.data import pictures, shards
from elt_jax.data.clips import Windows, window
from elt_jax.data.standins import StandIns

_NAME = re.compile(r'(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?')


class TfdsImages:
  """Decodes an image when it is asked for: {'image': uint8 [h, w, c], 'label'}.

  Attributes:
    class_names: of the labels.
    unreadable: of the images passed over so far, see `StandIns`.
  """

  def __init__(
    self,
    name: str,
    split: str,
    size: int,
    channels: int,
    skip_unreadable: bool = False,
  ):
    """Opens the records of a split; for the arguments see `FolderSource`.

    Args:
      name: of the data set, NAME[/CONFIG][:VERSION].

    Raises:
      ValueError: as `Examples`, or on another number of channels.
    """
    self._mode, self._size = pictures.mode_of(channels), size
    self._examples = Examples(name, split, 'image')
    self.class_names = self._examples.class_names
    indices = range(len(self._examples))
    self._stand_ins = StandIns(indices, 'images', skip_unreadable)
    self.unreadable = self._stand_ins.unreadable

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises ValueError as `StandIns.read` and `pictures.read`."""
    return self._stand_ins.read(index, self._example)

  def _example(self, index: int) -> dict[str, Any]:
    (image,), label = self._examples[index]
    name = self._examples.name_of(index)
    image = pictures.read(io.BytesIO(image), self._mode, self._size, name)
    return {'image': image, 'label': label}


class TfdsClips(Windows):
  """Windows of videos, of which no other frame is decoded."""

  def __init__(self, name: str, split: str, *args: Any, **kwargs: Any):
    """As `TfdsImages`; the rest is `num_frames` and on, of `Windows`."""
    self._examples = Examples(name, split, 'video')
    indices, names = range(len(self._examples)), self._examples.class_names
    super().__init__(indices, names, *args, **kwargs)

  def example(self, video: int, place: float) -> dict[str, Any]:
    frames, label = self._examples[video]
    name = self._examples.name_of(video)
    wanted = window(name, len(frames), place, self._num_frames, self._stride)
    decoded = [
      pictures.read(io.BytesIO(frames[i]), self._mode, self._size, name)
      for i in wanted
    ]
    return {'image': np.stack(decoded), 'label': label}


class Examples:
  """(encoded pictures, label) of each example of a split.

  Attributes:
    class_names: of the labels.
  """

  def __init__(self, name: str, split: str, kind: str):
    """Opens the records.

    Args:
      name: see `find`.
      split: 'train' or 'test'.
      kind: 'image' or 'video', the feature that is read.

    Raises:
      ValueError: if the data set is not there or not in ArrayRecord files, has
        no such feature, label or split, or lacks files.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # Takes a second.

    self._directory, self._kind = find(name), kind
    self._parse = tf_example_pb2.Example.FromString
    self.class_names = _class_names(self._directory, kind)
    found = _splits(self._directory)
    names = (split,) if split == 'train' else ('test', 'validation')
    names = [name for name in names if name in found]
    if not names:
      raise ValueError(
        f'{self._directory} has no split for {split!r}, but {sorted(found)}.'
      )
    self._open(names[0], found)
    # ImageNet's test images have none: nobody is told.
    if len(names) > 1 and _label(self._example(0)) < 0:
      self._open(names[1], found)

  def _open(self, split: str, found: dict[str, Any]) -> None:
    files = [pathlib.Path(path) for path in found[split].filepaths]
    self._records = shards.Records(files, found[split].num_examples)
    self._split = split

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> tuple[list[bytes], np.int32]:
    """Raises ValueError, naming the example, if it is damaged."""
    example = self._example(index)
    images, label = example[self._kind].bytes_list.value, _label(example)
    few = self._kind == 'image' and len(images) != 1
    if few or not 0 <= label < len(self.class_names):
      raise ValueError(
        f'{self.name_of(index)} has {len(images)} pictures and label {label}; '
        f'expected a label below {len(self.class_names)}.'
      )
    return images, np.int32(label)

  def _example(self, index: int) -> Any:
    """Its features by name."""
    record = self._records[index]
    try:
      return self._parse(record).features.feature
    except message.DecodeError as e:
      raise ValueError(f'{self.name_of(index)} is damaged: {e}') from e

  def name_of(self, index: int) -> str:
    return f'{self._directory}: example {index} of {self._split}'


def find(name: str) -> pathlib.Path:
  """The directory of a prepared data set, of its newest version.

  Args:
    name: NAME[/CONFIG][:VERSION]; CONFIG may be left out if one is there.

  Raises:
    ValueError: if there is none.
  """
  parsed = _NAME.fullmatch(name)
  if not parsed:
    raise ValueError(
      "data.source must be 'tfds:NAME[/CONFIG][:VERSION]', as in "
      f"'tfds:imagenet2012:5.1.0'; got 'tfds:{name}'."
    )
  data_set, config, version = parsed.groups()
  root = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'))
  directory = root.expanduser() / data_set
  configs = sorted({path.parent.name for path in _versions(directory, '*/')})
  if config or (len(configs) == 1 and not _versions(directory)):
    directory /= config or configs[0]
  elif configs and not _versions(directory):
    raise ValueError(
      f'data.source: {directory} has several configs: {configs}. Name one, as '
      f"in 'tfds:{data_set}/{configs[0]}'."
    )
  versions = _versions(directory)
  found = [path for path in versions if version in (None, path.name)]
  if not found:
    there = ', '.join(configs + [path.name for path in versions]) or 'nothing'
    raise ValueError(
      f'data.source: tfds:{name} is not prepared in {directory}, which has '
      f'{there}. Set TFDS_DATA_DIR, or run, where TensorFlow is installed, '
      f'`tfds build {name} --file_format=array_record`.'
    )
  return found[-1]


def _versions(directory: pathlib.Path, below: str = '') -> list[pathlib.Path]:
  """Directories of versions that were prepared, by their number."""
  found = [
    path.parent
    for path in directory.glob(f'{below}*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  ]
  return sorted(found, key=lambda p: [int(n) for n in p.name.split('.')])


def _splits(directory: pathlib.Path) -> dict[str, Any]:
  """Split -> the library's `SplitInfo`.

  Raises:
    ValueError: if they are in files without random access.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info

  try:
    info = dataset_info.read_proto_from_builder_dir(directory)
  except json_format.ParseError as e:
    raise ValueError(f'{directory} has a damaged dataset_info.json: {e}') from e
  formats = [info.file_format, *info.alternative_file_formats]
  if 'array_record' not in formats:
    raise ValueError(
      f'{directory} is in {info.file_format} files, which are not read in any '
      'order. Run, where TensorFlow is installed, `tfds convert_format '
      f'--dataset_version_dir={directory} --out_file_format=array_record`.'
    )
  files = tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(directory),
    dataset_name=info.name,
    filetype_suffix='array_record',
  )
  return tfds.core.SplitDict.from_proto(info.splits, files)


def _class_names(directory: pathlib.Path, kind: str) -> list[str]:
  """Of the feature 'label'.

  Raises:
    ValueError: if there is none, or no pictures of feature `kind`.
  """
  path = directory / 'features.json'
  try:
    features = json.loads(path.read_text())['featuresDict']['features']
  except (OSError, ValueError, KeyError) as e:
    raise ValueError(
      f'{path} is missing or damaged ({type(e).__name__}: {e}). Prepare the '
      'data set anew.'
    ) from e
  stored = features.get(kind, {})
  if kind == 'video' and 'sequence' in stored:
    frames = stored['sequence']['feature'].get('image')
  else:
    frames = stored.get(kind)
  # Other numbers are stored as bytes of pictures that nobody draws.
  if frames is None or frames.get('dtype', 'uint8') != 'uint8':
    raise ValueError(
      f'{directory} has no {kind!r} of uint8 pixels; its features are '
      f'{sorted(features)}. data.num_frames = 1 reads images, more read videos.'
    )
  if 'classLabel' not in features.get('label', {}):
    raise ValueError(
      f"{directory} has no class label 'label'; its features are "
      f'{sorted(features)}.'
    )
  names = directory / 'label.labels.txt'
  if not names.is_file():
    count = int(features['label']['classLabel']['numClasses'])
    return [str(n) for n in range(count)]
  return [name.strip() for name in names.read_text().split('\n') if name]


def _label(example: Any) -> int:
  return next(iter(example['label'].int64_list.value), -1)
