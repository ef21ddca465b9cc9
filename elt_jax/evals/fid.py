"""FID, sFID, IS, precision and recall as OpenAI's evaluation suite has them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath
import numpy as np
from tqdm import tqdm

from elt_jax import files
from elt_jax.evals import adm, fid_reference, image_metrics
from elt_jax.evals.frechet import Samples
from elt_jax.evals.inception import Features
from elt_jax.evals.metrics import Measure
from elt_jax.evals.resume import check_same

# By their flag; each has a column or two.
METRICS = ('fid', 'sfid', 'is', 'pr')
_FEATURES = {'fid': 'pool', 'sfid': 'spatial'}
# Images of the reference that are seen at a time.
_PART = 1024

Network = Callable[[np.ndarray], Features]


class Images(Measure):
  """These metrics of images."""

  def __init__(
    self,
    metrics: Sequence[str],
    network: Any,
    num: int,
    pixels: Any,
    workdir: epath.PathLike,
    file: adm.Reference | None = None,
  ):
    """Looks for the reference that was made before, and reads nothing yet.

    Args:
      metrics: of `METRICS`.
      network: features of images, with their fingerprint.
      num: images of a row.
      pixels: config of the model's data set of images.
      workdir: where the reference is kept that is made of its training set.
      file: a reference to take in its place.

    Raises:
      ValueError: as `fid_reference.make_recipe` and `fid_reference.found`.
    """
    self._metrics, self._file, self._network = metrics, file, network
    self._num, self._pixels, self._made = num, pixels, None
    self._path = epath.Path(workdir) / fid_reference.NAME
    of = pixels, network.fingerprint
    if file and (theirs := file.recipe()):
      wanted = fid_reference.seen_as(*of)
      check_same(file.path, theirs, wanted, fid_reference.REMEDY)
    elif not file and list(metrics) != ['is']:
      self._made = fid_reference.make_recipe(*of)
      self._file = fid_reference.found(self._path, self._made)
    self.recipe = {
      'metrics': list(metrics),
      'reference': identity(file) if file else self._made,
      'inception': network.fingerprint,
      'preprocessing': 'uint8; TensorFlow 1 bilinear to 299 x 299',
      'is_split': image_metrics.IS_SPLIT,
      'neighbours': image_metrics.NEIGHBOURS,
    }

  def prepare(self) -> None:
    if self._made and not self._file:
      self._file = fid_reference.make(
        self._path, self._pixels, self._made, self._network
      )
    self._reference = Reference(self._file, self._network, self._metrics)

  def start(self) -> 'Seen':
    classes = self._pixels.data.num_classes
    return Seen(self._network, self._metrics, self._num, classes)

  def row(self, seen: 'Seen') -> dict[str, float]:
    return self._reference.measure(seen, self._metrics)


class Seen:
  """What metrics take of images that come in parts."""

  def __init__(
    self, network: Network, metrics: Sequence[str], num: int, num_classes: int
  ):
    """For `num` images in all, of classes that take turns."""
    self._network = network
    self._metrics = metrics
    self.samples = {
      m: Samples(num, num_classes) for m in metrics if m in _FEATURES
    }
    self._pool, self._probabilities = [], []

  def add(self, images: np.ndarray) -> None:
    """Takes in uint8 [n, h, w, c]."""
    features = self._network(images)
    for metric, samples in self.samples.items():
      samples.add(getattr(features, _FEATURES[metric]))
    if 'pr' in self._metrics:
      self._pool.append(features.pool)
    if 'is' in self._metrics:
      self._probabilities.append(features.probabilities)

  @property
  def pool(self) -> np.ndarray:
    return np.concatenate(self._pool)

  @property
  def probabilities(self) -> np.ndarray:
    return np.concatenate(self._probabilities)


class Reference:
  """What samples are measured against, by metric.

  Attributes:
    moments: of 'fid' and 'sfid', (mean, covariance).
    pool: float32 [n, 2048], of 'pr'.
  """

  def __init__(
    self,
    file: adm.Reference | None,
    network: Network,
    metrics: Sequence[str],
  ):
    """Reads moments, and sees images where there are none or 'pr' wants them.

    Raises:
      ValueError: as `adm.Reference`, or if the file lacks what a metric takes.
    """
    self.moments = {}
    for metric in set(metrics) & set(_FEATURES):
      if found := file.moments(_FEATURES[metric]):
        self.moments[metric] = found
    missing = [m for m in metrics if m != 'is' and m not in self.moments]
    if not missing:
      return
    if 'arr_0' not in file.names:
      raise ValueError(
        f'{file.path} has {file.names}, and no arr_0, the images that '
        f'--metrics={",".join(missing)} take.'
      )
    seen = Seen(network, missing, file.count(), 1)
    with tqdm(total=file.count(), desc='reference') as progress:
      for images in file.images(_PART):
        seen.add(images)
        progress.update(len(images))
    for metric in set(missing) & set(_FEATURES):
      self.moments[metric] = seen.samples[metric].read()
    if 'pr' in missing:
      self.pool = seen.pool

  def measure(self, seen: Seen, metrics: Iterable[str]) -> dict[str, float]:
    """The columns of these metrics, in their order.

    'fid_spread' is the standard error of 'fid', see `frechet.Samples`.
    """
    row = {}
    for metric in metrics:
      if metric in _FEATURES:
        row[metric], row[f'{metric}_spread'] = seen.samples[metric].distance(
          *self.moments[metric]
        )
      elif metric == 'is':
        row['is'] = image_metrics.inception_score(seen.probabilities)
      else:
        row['precision'], row['recall'] = image_metrics.precision_recall(
          self.pool, seen.pool
        )
    return row


def identity(file: adm.Reference) -> dict[str, Any]:
  """What a recipe says of a given reference."""
  named = {
    'file': epath.Path(file.path).name,
    'fingerprint': files.fingerprint_of_npz(file.path),
  }
  return named | file.recipe()


def check_count(file: adm.Reference, metrics: Iterable[str], num: int) -> None:
  """Raises ValueError where a Frechet distance is of unequal counts.

  It is biased, the more the fewer the images. Published moments do not say of
  how many they are: of a whole training set, compared with 50,000 samples.
  """
  for metric in metrics:
    if metric not in _FEATURES or file.has_moments(_FEATURES[metric]):
      continue
    if (count := file.count()) not in (None, num):
      raise ValueError(
        f'--metrics={metric} of {num} samples against {count} images: the '
        f'distance is biased by both numbers. Set --num={count}, or give '
        '--unequal to compare all the same.'
      )
