"""The picture a run draws of itself every train.sample_every_steps."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from elt_jax import viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import least_loops
from elt_jax.tokenizers.pretrained import Tokenizer

# Columns of the grid.
_COLUMNS = 10

Preview = Callable[[Any], np.ndarray]


def build_preview(
  config: Any, model: Any, mesh: Mesh, tokenizer: Tokenizer | None
) -> Preview:
  """A function of the averaged parameters that gives uint8 [H, W, 3].

  Of a generator, a row of samples per loop count up to L_max, the same seeds in
  each; of a tokenizer, held-out examples over their reconstructions.
  """
  if config.model.family == 'tokenizer':
    return _reconstructions(config, model)
  draw = Draw(config, model, mesh, _COLUMNS, tokenizer)
  labels = np.arange(_COLUMNS) % config.data.num_classes
  counts = range(least_loops(config), config.model.max_loops + 1)

  def preview(params: Any) -> np.ndarray:
    rows = [
      viz.to_uint8(draw(params, labels, loops, seed=0)) for loops in counts
    ]
    return viz.grid(np.concatenate(rows), _COLUMNS)

  return preview


def _reconstructions(config: Any, model: Any) -> Preview:
  source = sources.load_source(config, 'test')
  count = min(_COLUMNS, len(source))
  x = to_zero_one(np.stack([source[i]['image'] for i in range(count)]))
  there_and_back = jax.jit(
    lambda params, x: model.decode(params, model.tokens(params, x))
  )

  def preview(params: Any) -> np.ndarray:
    y = jax.device_get(there_and_back(params, x))
    return viz.grid(viz.to_uint8(2 * np.concatenate([x, y]) - 1), count)

  return preview
