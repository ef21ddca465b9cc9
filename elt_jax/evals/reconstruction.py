"""How well a tokenizer reconstructs the held-out split, and with what codes."""

import json
from typing import Any

from etils import epath
import jax
import numpy as np

from elt_jax import files, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.evals.reference import Reference
from elt_jax.objectives.tokenizer import usage
from elt_jax.tokenizers.pretrained import Tokenizer

# Examples of the picture.
_IMAGES, _CLIPS = 20, 6


def evaluate(
  tokenizer: Tokenizer, step: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Metrics of the test split.

  See `psnr` and `objectives.tokenizer.usage`; where the data set is small
  enough to train a classifier on, the metrics of `evals.reference` too.

  Returns:
    (report, picture): what reconstruction.json holds, and uint8 [H, W, 3]
    originals over their reconstructions; see `viz.versions`.
  """
  config = tokenizer.config
  train, test = (sources.load_source(config, split) for split in sources.SPLITS)
  test = sources.in_memory(test)
  x = to_zero_one(test.images)
  tokens = tokenizer.encode(x)
  y = tokenizer.reconstruct(tokens)
  report = {
    'checkpoint_step': step,
    'fingerprint': tokenizer.fingerprint,
    'source': f'{config.data.source}, test split',
    'num_images': len(x),
    'grid': list(tokenizer.grid),
    'codebook_size': config.tokenizer.codebook_size,
    'psnr': psnr(x, y),
    **jax.tree.map(float, usage(tokens, config.tokenizer.codebook_size)),
  }
  if sources.fit_in_memory(train, test):
    train = sources.in_memory(train)
    reference = Reference(train, test, config.data.num_classes)
    report |= reference.measure(2 * y - 1, test.labels)
    report |= reference.facts
  report['device'] = f'{jax.device_count()} {jax.devices()[0].device_kind}'
  shown = _CLIPS if x.ndim == 5 else _IMAGES
  pairs = np.stack([x[:shown], y[:shown]])
  return report, viz.versions(viz.to_uint8(2 * pairs - 1))


def psnr(x: np.ndarray, y: np.ndarray) -> float:
  """Mean over images in [0, 1] of the peak signal-to-noise ratio, in dB."""
  mse = np.mean((x - y) ** 2, axis=tuple(range(1, x.ndim)))
  return float(np.mean(-10 * np.log10(np.maximum(mse, 1e-10))))


def table(report: dict[str, Any]) -> str:
  """The report as text."""
  return '\n'.join(
    f'{name:20s} {value:.4g}'
    if isinstance(value, float)
    else f'{name:20s} {value}'
    for name, value in report.items()
  )


def write(
  workdir: str, report: dict[str, Any], picture: np.ndarray
) -> tuple[epath.Path, epath.Path]:
  """Writes reconstruction.json and reconstruction.png; returns their paths."""
  root = epath.Path(workdir)
  paths = root / 'reconstruction.json', root / 'reconstruction.png'
  files.write_text(paths[0], json.dumps(report, indent=2) + '\n')
  viz.save_png(paths[1], picture, scale=2)
  return paths
