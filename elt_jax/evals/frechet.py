"""Frechet distance between two sets of features, in float64."""

from collections.abc import Iterable, Sequence

import numpy as np

_GROUPS = 10
_GOLDEN = (5**0.5 - 1) / 2


class Moments:
  """Mean and covariance of features that come in parts, in float64.

  Parts are joined by the update of Chan et al. (1979), which loses nothing to
  cancellation; in which parts the features come matters to rounding alone.
  """

  def __init__(self):
    self.count = 0
    self._mean = self._scatter = 0.0

  def add(self, features: np.ndarray) -> None:
    """Takes [n, d] in.

    Raises:
      ValueError: on another rank, or if a value is not finite.
    """
    part = np.asarray(features, np.float64)
    if part.ndim != 2:
      raise ValueError(
        f'Frechet moments need [n, d] features, got {part.shape}.'
      )
    if not np.isfinite(part).all():
      raise ValueError('Frechet moments: the features are not all finite.')
    if len(part):
      mean = part.mean(0)
      self._join(len(part), mean, (part - mean).T @ (part - mean))

  def merge(self, other: 'Moments') -> None:
    """Takes in what another has."""
    if other.count:
      self._join(other.count, other._mean, other._scatter)

  def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
    gap, total = mean - self._mean, self.count + count
    share = count / total
    self._scatter = (
      self._scatter + scatter + np.outer(gap, gap) * self.count * share
    )
    self._mean = self._mean + gap * share
    self.count = total

  def read(self) -> tuple[np.ndarray, np.ndarray]:
    """(mean [d], covariance [d, d]), divided by n - 1.

    Raises:
      ValueError: of fewer than two rows.
    """
    if self.count < 2:
      raise ValueError(
        f'Frechet moments need at least 2 rows of features, got {self.count}.'
      )
    return self._mean, self._scatter / (self.count - 1)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean, covariance) of [n, d] features that are all there; see `Moments`."""
  found = Moments()
  found.add(features)
  return found.read()


class Samples:
  """Features of samples that come in parts: their distance and its spread."""

  def __init__(self, num: int, num_classes: int):
    """For `num` samples in all, of classes that take turns."""
    self.count = 0
    self._groups = [Moments() for _ in range(_GROUPS)]
    self._turn = num_classes if num >= _GROUPS * num_classes else None

  def add(self, features: np.ndarray) -> None:
    """Takes [n, d] in; raises ValueError as `Moments.add`."""
    places = np.arange(self.count, self.count + len(features))
    if self._turn:
      groups = places // self._turn % _GROUPS  # Each has all classes alike.
    else:  # As well as can be, whatever the number of classes.
      groups = (places * _GOLDEN % 1 * _GROUPS).astype(int)
    for number, group in enumerate(self._groups):
      group.add(features[groups == number])
    self.count += len(features)

  def read(self) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of all; raises ValueError as `Moments.read`."""
    return _merged(self._groups).read()

  def distance(
    self, mean: np.ndarray, covariance: np.ndarray
  ) -> tuple[float, float]:
    """(Frechet distance to those moments, its standard error).

    The error is of the choice of the samples, those moments taken as they are:
    the jackknife over ten groups, (9/10 sum (d_i - mean d)^2)^1/2 of the ten
    distances d_i that leave a group out (Efron, 1982). NaN where leaving one
    out leaves fewer than two.
    """
    kept = [
      _merged(group for j, group in enumerate(self._groups) if j != i)
      for i in range(_GROUPS)
    ]
    if min(of_kept.count for of_kept in kept) < 2:
      return frechet_distance(*self.read(), mean, covariance), float('nan')
    sets = [self.read(), *(of_kept.read() for of_kept in kept)]
    whole, *left_out = _distances(sets, mean, covariance)
    variance = np.var(left_out) * (_GROUPS - 1)
    return whole, float(np.sqrt(variance))


def _merged(groups: Iterable[Moments]) -> Moments:
  found = Moments()
  for group in groups:
    found.merge(group)
  return found


def _factor(matrix: np.ndarray) -> np.ndarray:
  """F [d, rank] with F F^T the symmetric positive semi-definite matrix."""
  values, vectors = np.linalg.eigh(matrix)
  # Below this they are rounding, whose roots would add up.
  there = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, there] * np.sqrt(values[there])


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).

  The symmetric form (Heusel et al., arXiv 1706.08500) is real for every pair
  of covariances, rank-deficient ones included. Its last trace is the sum of the
  singular values of F1^T F2, for C1 = F1 F1^T and C2 = F2 F2^T.
  """
  return _distances([(mean1, cov1)], mean2, cov2)[0]


def _distances(
  sets: Sequence[tuple[np.ndarray, np.ndarray]],
  mean: np.ndarray,
  covariance: np.ndarray,
) -> list[float]:
  """Of each (mean, covariance) to the others, whose factor is found once."""
  factor, trace = _factor(covariance), np.trace(covariance)
  found = []
  for mean1, cov1 in sets:
    cross = np.linalg.svd(_factor(cov1).T @ factor, compute_uv=False).sum()
    gap = np.sum((mean1 - mean) ** 2)
    found.append(float(gap + np.trace(cov1) + trace - 2 * cross))
  return found
