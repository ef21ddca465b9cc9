"""Frechet distance between two sets of features, in float64."""

import numpy as np


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
    mean = part.mean(0)
    gap, total = mean - self._mean, self.count + len(part)
    share = len(part) / total
    self._scatter = (
      self._scatter
      + (part - mean).T @ (part - mean)
      + np.outer(gap, gap) * self.count * share
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
  product = _factor(cov1).T @ _factor(cov2)
  cross = np.linalg.svd(product, compute_uv=False).sum()
  gap = np.sum((mean1 - mean2) ** 2)
  return float(gap + np.trace(cov1) + np.trace(cov2) - 2 * cross)
