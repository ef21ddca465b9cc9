"""The picture a run draws of itself every train.sample_every_steps."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from elt_jax import hosts, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import least_loops
from elt_jax.tokenizers.autoencoder import Autoencoder
from elt_jax.tokenizers.pretrained import Tokenizer

# Examples of a picture; a clip takes a row of it.
_IMAGES, _CLIPS = 10, 2

Preview = Callable[[Any], np.ndarray]


def build_preview(
  config: Any, model: Any, mesh: Mesh, tokenizer: Tokenizer | Autoencoder | None
) -> Preview:
  """A function of the averaged parameters that gives uint8 [H, W, 3].

  Of a generator, the same seeds at each loop count up to L_max; of a tokenizer,
  held-out examples over their reconstructions. See `viz.versions`.

  Raises:
    ValueError: if the guidance takes more loops than L_max.
  """
  count = _CLIPS if config.data.num_frames > 1 else _IMAGES
  if config.model.family == 'tokenizer':
    return _reconstructions(config, model, count)
  draw = Draw(config, model, mesh, count, tokenizer)
  labels = np.arange(count) % config.data.num_classes
  counts = range(least_loops(config), config.model.max_loops + 1)
  if not counts:
    raise ValueError(
      f'sample.weak_loops = {config.sample.weak_loops} is more than '
      f'model.max_loops = {config.model.max_loops}, to which previews go: '
      'lower it, or set train.sample_every_steps=0.'
    )

  def preview(params: Any) -> np.ndarray:
    samples = [draw(params, labels, loops, seed=0) for loops in counts]
    return viz.versions(viz.to_uint8(np.stack(samples)))

  return preview


def _reconstructions(config: Any, model: Any, count: int) -> Preview:
  source = sources.load_source(config, 'test')
  count = min(count, len(source))
  x = to_zero_one(np.stack([source[i]['image'] for i in range(count)]))
  there_and_back = jax.jit(
    lambda params, x: model.decode(params, model.tokens(params, x))
  )

  def preview(params: Any) -> np.ndarray:
    y = hosts.fetch(there_and_back(params, x))
    return viz.versions(viz.to_uint8(2 * np.stack([x, y]) - 1))

  return preview
