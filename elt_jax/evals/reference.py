"""What samples are measured against: a data set, as the LeNet sees it."""

import numpy as np

from elt_jax.data.sources import ArraySource
from elt_jax.data.transforms import to_unit_range
from elt_jax.evals import frechet, lenet


class Reference:
  """Both splits of a data set, and the classifier trained on the first.

  Attributes:
    images: [n, ...], train before test.
    floor: `fd_lenet` of one random half of the features to the other.
    lenet_accuracy: of the classifier, on the test split.
  """

  def __init__(self, train: ArraySource, test: ArraySource, num_classes: int):
    self._classifier = lenet.load_or_train(train, test, num_classes)
    self.lenet_accuracy = self._classifier.accuracy
    self.images = np.concatenate([train.images, test.images])
    features, _ = self._classifier(to_unit_range(self.images))
    self._moments = frechet.moments(features)
    self.floor = half_split_distance(features)

  def measure(
    self, images: np.ndarray, labels: np.ndarray | None = None
  ) -> dict[str, float]:
    """'fd_lenet' of float [n, ...] images in [-1, 1] to the data set.

    With the classes `labels` [n] that were asked for, 'class_accuracy' too.
    """
    features, predicted = self._classifier(images)
    found = {
      'fd_lenet': frechet.frechet_distance(
        *frechet.moments(features), *self._moments
      )
    }
    if labels is not None:
      found['class_accuracy'] = float(np.mean(predicted == labels))
    return found


def half_split_distance(features: np.ndarray) -> float:
  """Distance of one random half of the data to the other: the floor."""
  order = np.random.default_rng(0).permutation(len(features))
  first, second = np.array_split(features[order], 2)
  return frechet.frechet_distance(
    *frechet.moments(first), *frechet.moments(second)
  )
