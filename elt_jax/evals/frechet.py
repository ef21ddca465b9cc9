"""Frechet distance between two sets of features, in float64."""

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[n, d] -> (mean [d], covariance [d, d]), float64, divided by n - 1.

  Raises:
    ValueError: if there are fewer than two rows, or a value is not finite.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(
      f'Frechet moments need [n >= 2, d] features, got {features.shape}.'
    )
  if not np.isfinite(features).all():
    raise ValueError('Frechet moments: the features are not all finite.')
  return features.mean(0), np.cov(features, rowvar=False).reshape(
    features.shape[1], features.shape[1]
  )


def _sqrt(matrix: np.ndarray) -> np.ndarray:
  """Square root of a symmetric positive semi-definite matrix."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).

  The symmetric form (Heusel et al., arXiv 1706.08500) is real for every pair
  of covariances, rank-deficient ones included.
  """
  root = _sqrt(cov1)
  inner = np.linalg.eigvalsh(root @ cov2 @ root)
  cross = np.sqrt(np.clip(inner, 0, None)).sum()
  gap = np.sum((mean1 - mean2) ** 2)
  return float(gap + np.trace(cov1) + np.trace(cov2) - 2 * cross)
