"""FVD of clips, by the protocols that numbers are published with.

Every paper counts other clips, and their numbers do not compare:

    magvit       10,000 samples against 10,000 clips of the training set, four
                 times, with other samples and other windows; mean and standard
                 deviation (google-research/magvit: eval_utils.py,
                 maskgvt_ucf101_config.py). TensorFlow 1's resize. UCF-101 is
                 trainlist01, and the ELT paper's table follows it.
    stylegan_v   2,048 samples against 2,048 clips (universome/stylegan-v:
                 metric_main.py, fvd2048_16f, isv2048_ucf). Frames are resized
                 with half pixels.

Both are of 16 frames in a row, at the resolution of the model, which I3D sees
at 224 x 224. A sample has the class of a clip of the reference, where that is
the model's own training set, and pixels are bytes. Otherwise than published:
MAGVIT leaves its pixels unrounded; StyleGAN-V takes the first 2,048 videos by
name, not any, draws the classes of samples from the whole data set, and divides
covariances by n.
"""

import dataclasses
from typing import Any

from etils import epath
import numpy as np

from elt_jax import files, hosts
from elt_jax.evals import fvd_reference
from elt_jax.evals.frechet import Moments, frechet_distance
from elt_jax.evals.i3d import I3D, LEAST_FRAMES
from elt_jax.evals.metrics import Measure
from elt_jax.evals.resume import check_same


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How many clips are compared, and how they are seen.

  Attributes:
    name: as it is asked for, or ''.
    num: samples of each repeat, and clips of its reference.
    repeats: of all, with other samples and clips.
    resizing: to 224 x 224, of `resize.KINDS`.
    ucf_split: of the reference, where it is UCF-101; None is the model's.
    is_splits: parts of the samples of a repeat, of each of which there is an
      IS (`evals.clip_score`).
  """

  name: str
  num: int
  repeats: int = 1
  resizing: str = 'TensorFlow 1'
  ucf_split: str | None = None
  is_splits: int = 10


PROTOCOLS = {
  'magvit': Protocol('magvit', 10_000, 4, ucf_split='1', is_splits=1),
  'stylegan_v': Protocol('stylegan_v', 2048, resizing='half pixels'),
}
_FRAMES = 16


class Seen:
  """Moments of I3D's features of samples, of each repeat in its turn."""

  def __init__(self, network: I3D, protocol: Protocol):
    self._network, self._num = network, protocol.num
    self.moments = [Moments() for _ in range(protocol.repeats)]
    self._count = 0

  def add(self, clips: np.ndarray) -> None:
    """Takes in uint8 [n, f, h, w, 3]."""
    features = self._network(clips)
    repeat = (self._count + np.arange(len(clips))) // self._num
    for n in np.unique(repeat):
      self.moments[n].add(features[repeat == n])
    self._count += len(clips)


class Fvd(Measure):
  """The distance of clips to the training set."""

  def __init__(
    self,
    protocol: Protocol,
    network: I3D,
    pixels: Any,
    workdir: epath.PathLike,
    file: epath.PathLike | None = None,
    unequal: bool = False,
  ):
    """Reads the reference if there is one.

    Args:
      protocol: of `PROTOCOLS`, or one of other numbers.
      network: features of clips, by the protocol's resizing.
      pixels: config of the model's data set of clips.
      workdir: where the reference is kept that is made of its training set.
      file: a reference to take in its place.
      unequal: whether the reference may be of another number of clips.

    Raises:
      ValueError: if the clips are not of the protocol, or the reference is
        damaged, of other clips or seen in another way.
    """
    self._protocol, self._network = protocol, network
    self._check_clips(pixels)
    self._config = fvd_reference.training_clips(pixels, protocol.ucf_split)
    preprocessing = f'uint8; {protocol.resizing} bilinear to 224 x 224'
    self._made = fvd_reference.make_recipe(
      self._config,
      protocol.num,
      protocol.repeats,
      preprocessing,
      network.fingerprint,
    )
    name = protocol.name or protocol.num
    self._path = epath.Path(file or epath.Path(workdir) / f'fvd-{name}.npz')
    self._reference = None
    if file or self._path.exists():
      self._reference = fvd_reference.read(self._path)
      self._check_reference(bool(file), unequal)
    self.recipe = {
      'metrics': ['fvd'],
      'protocol': protocol.name or 'none',
      'repeats': protocol.repeats,
      'samples_of_each': protocol.num,
      'reference': self._reference.recipe if self._reference else self._made,
      'i3d': network.fingerprint,
      'i3d_weights': network.weights,
      'preprocessing': preprocessing,
    }
    if file:
      self.recipe['reference_file'] = self._path.name
      self.recipe['reference_fingerprint'] = files.fingerprint_of_npz(file)
    if self._reference is None or self._labels is not None:
      self.recipe['labels'] = 'of the clips of the reference'

  @property
  def _labels(self) -> np.ndarray | None:
    """Of the reference's clips, if its classes are those of the model."""
    same = self._reference.recipe.get('source') == self._made['source']
    return self._reference.labels if same else None

  def _check_clips(self, pixels: Any) -> None:
    frames, name = pixels.data.num_frames, self._protocol.name
    if name and pixels.data.frame_stride != 1:
      raise ValueError(
        f'--protocol={name} is of frames in a row; the model draws every '
        f'{pixels.data.frame_stride}th (data.frame_stride).'
      )
    if frames < LEAST_FRAMES or (name and frames != _FRAMES):
      raise ValueError(
        f'FVD is of clips of {_FRAMES} frames, and of at least {LEAST_FRAMES} '
        f'without --protocol; the model draws {frames}.'
      )

  def _check_reference(self, given: bool, unequal: bool) -> None:
    """Raises ValueError unless samples may be measured against it."""
    reference, protocol = self._reference, self._protocol
    # Another set is taken as it is; seen otherwise it would not compare.
    free = ('source', 'split', 'ucf_split', 'count', 'repeats') if given else ()
    if reference.recipe or not given:
      fixed = {n: value for n, value in self._made.items() if n not in free}
      remedy = 'Move it away, and leave --reference out, to make one.'
      check_same(self._path, reference.recipe, fixed, remedy)
    repeats = len(reference.moments)
    if repeats not in (1, protocol.repeats):
      raise ValueError(
        f'{self._path} has {repeats} repeats, and {protocol.repeats} are '
        'compared.'
      )
    if not unequal and reference.count not in (None, protocol.num):
      raise ValueError(
        f'--metrics=fvd of {protocol.num} samples against {reference.count} '
        'clips: the distance is biased by both numbers. Give --unequal to '
        'compare all the same.'
      )

  def prepare(self) -> None:
    if self._reference is None:
      self._reference = fvd_reference.measured(
        self._config, self._made, self._network
      )
      write = lambda: fvd_reference.write(self._path, self._reference)
      hosts.once('reference', write)

  def labels(self, num: int, num_classes: int) -> np.ndarray:
    if self._labels is None:
      return super().labels(num, num_classes)
    return np.resize(self._labels, num)

  def start(self) -> Seen:
    return Seen(self._network, self._protocol)

  def row(self, seen: Seen) -> dict[str, float]:
    """'fvd', and 'fvd_std' of repeats."""
    references = self._reference.moments
    if len(references) == 1:
      references = references * len(seen.moments)
    found = [
      frechet_distance(*moments.read(), *reference)
      for moments, reference in zip(seen.moments, references, strict=True)
    ]
    row = {'fvd': float(np.mean(found))}
    if len(found) > 1:
      row['fvd_std'] = float(np.std(found))
    return row
