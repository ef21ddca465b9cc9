"""IS of clips, by C3D; its numbers of samples are those of FVD's protocols."""

from typing import Any

import numpy as np

from elt_jax.evals import c3d
from elt_jax.evals.fvd import Protocol
from elt_jax.evals.image_metrics import inception_score
from elt_jax.evals.metrics import Measure


class Seen:
  """Probabilities of samples that come in parts."""

  def __init__(self, network: c3d.C3D):
    self._network, self._parts = network, []

  def add(self, clips: np.ndarray) -> None:
    """Takes in uint8 [n, 16, h, w, 3]."""
    self._parts.append(self._network(clips))

  @property
  def probabilities(self) -> np.ndarray:
    return np.concatenate(self._parts)


class ClipScore(Measure):
  """The IS of clips, which are measured against nothing."""

  def __init__(self, protocol: Protocol, network: c3d.C3D, pixels: Any):
    """Checks the clips against the network.

    Raises:
      ValueError: if they are not of 16 frames, or too few to be scored.
    """
    if (frames := pixels.data.num_frames) != c3d.FRAMES:
      raise ValueError(
        f'IS is of clips of {c3d.FRAMES} frames; the model draws {frames}.'
      )
    if protocol.num < protocol.is_splits:
      raise ValueError(
        f'IS is a mean over {protocol.is_splits} parts of the samples, and '
        f'there are {protocol.num}.'
      )
    self._protocol, self._network = protocol, network
    self.recipe = {
      'metrics': ['is'],
      'protocol': protocol.name or 'none',
      'repeats': protocol.repeats,
      'samples_of_each': protocol.num,
      'is_splits': protocol.is_splits,
      'c3d': network.fingerprint,
    }

  def start(self) -> Seen:
    return Seen(self._network)

  def row(self, seen: Seen) -> dict[str, float]:
    """'is' and 'is_std', over all parts of all repeats."""
    p = self._protocol
    starts = np.arange(p.is_splits + 1) * p.num // p.is_splits
    scores = [
      inception_score(part, len(part))
      for repeat in np.split(seen.probabilities, p.repeats)
      for part in np.split(repeat, starts[1:-1])
    ]
    return {'is': float(np.mean(scores)), 'is_std': float(np.std(scores))}
