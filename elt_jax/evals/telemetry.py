"""What each loop does: at every step of sampling, and over training."""

import dataclasses
from typing import Any

from etils import epath
import numpy as np

from elt_jax import writers
from elt_jax.samplers.draw import Draw


def of_sampling(
  draw: Draw, params: Any, num: int, seed: int
) -> dict[str, list[list[float]]]:
  """`samplers.probe` of loops 1..2 L_max along L_max: [K][2 L_max] each."""
  found = draw.probe(params, num, 2 * draw.config.model.max_loops, seed)
  return {
    name: np.round(values, 6).astype(float).tolist()
    for name, values in dataclasses.asdict(found).items()
  }


def of_training(workdir: str) -> list[dict[str, Any]]:
  """{'step', 'loss': [2 L_max], ...} for each time that training looked.

  See `objectives.ilsd.loop_telemetry`; empty where nothing was logged.
  """
  found = []
  for record in writers.read(epath.Path(workdir) / 'logs'):
    loops = sum(name.endswith('/state_rms') for name in record)
    if loops:
      found.append(
        {'step': record['step']}
        | {
          name: [record[f'loop_{n}/{name}'] for n in range(1, loops + 1)]
          for name in ('state_rms', 'relative_update', 'loss', 'agreement')
        }
      )
  return found
