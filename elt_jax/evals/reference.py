"""What samples are measured against: a data set, as classifiers see it."""

from typing import Any

import numpy as np

from elt_jax.data.sources import ArraySource
from elt_jax.data.transforms import to_unit_range
from elt_jax.evals import classifiers, frechet, motion


class Reference:
  """Both splits of a data set, and what was trained on the first.

  Attributes:
    images: [n, ...], train before test.
    quality: name of the Frechet distance: 'fd_lenet' of images, 'fd_c3d' of
      clips.
    facts: of the recipe of a report: 'quality' and its 'floor', the distance
      of one random half of the data to the other; 'test_accuracy' of the
      classifier; of clips, 'frame_test_accuracy' of the classifier of frames
      and 'motion_of_data'.
  """

  def __init__(self, train: ArraySource, test: ArraySource, num_classes: int):
    clips = train.images.ndim == 5
    name = 'c3d' if clips else 'lenet'
    self._classifier = classifiers.load_or_train(name, train, test, num_classes)
    self.images = np.concatenate([train.images, test.images])
    features, _ = self._classifier(self.images)
    self._moments = frechet.moments(features)
    self._num_classes = num_classes
    self.quality = f'fd_{name}'
    self.facts: dict[str, Any] = {
      'quality': self.quality,
      'floor': half_split_distance(features),
      'test_accuracy': self._classifier.accuracy,
    }
    self._of_frames = None
    if clips:
      train, test = one_frame_each(train), one_frame_each(test)
      self._of_frames = classifiers.load_or_train(
        'lenet', train, test, num_classes
      )
      self.facts['frame_test_accuracy'] = self._of_frames.accuracy
      some = self.images[-1000:]
      self.facts['motion_of_data'] = _motion(to_unit_range(some))

  def measure(
    self, images: np.ndarray, labels: np.ndarray | None = None
  ) -> dict[str, float]:
    """Metrics of float [n, ...] images in [-1, 1], by name.

    `quality`; with the classes `labels` [n] that were asked for, which take
    turns, its standard error as '..._spread', see `frechet.Samples`, and
    'class_accuracy', the share that is classified so. Of clips, besides:
    'motion', see `evals.motion`, and 'frame_accuracy', of the single frames.
    """
    features, predicted = self._classifier(images)
    found = {}
    if labels is None:
      found[self.quality] = frechet.frechet_distance(
        *frechet.moments(features), *self._moments
      )
    else:
      samples = frechet.Samples(len(images), self._num_classes)
      samples.add(features)
      distance, spread = samples.distance(*self._moments)
      found = {self.quality: distance, f'{self.quality}_spread': spread}
      found['class_accuracy'] = float(np.mean(predicted == labels))
    if self._of_frames is None:
      return found
    if labels is not None:
      frames = images.reshape(-1, *images.shape[2:])
      _, predicted = self._of_frames(frames)
      of_clip = np.repeat(labels, images.shape[1])
      found['frame_accuracy'] = float(np.mean(predicted == of_clip))
    return found | {'motion': _motion(images)}


def one_frame_each(clips: ArraySource) -> ArraySource:
  """A frame of every clip, any of them."""
  n, f = clips.images.shape[:2]
  frames = np.random.default_rng(0).integers(f, size=n)
  return ArraySource(clips.images[np.arange(n), frames], clips.labels)


def _motion(clips: np.ndarray) -> float:
  return float(motion.consistency(clips).mean())


def half_split_distance(features: np.ndarray) -> float:
  """Distance of one random half of the data to the other: the floor."""
  order = np.random.default_rng(0).permutation(len(features))
  first, second = np.array_split(features[order], 2)
  return frechet.frechet_distance(
    *frechet.moments(first), *frechet.moments(second)
  )
