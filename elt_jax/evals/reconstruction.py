"""How well a tokenizer reconstructs the held-out split, and with what codes."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from elt_jax import files, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.evals.reference import Reference
from elt_jax.objectives.tokenizer import usage
from elt_jax.tokenizers.pretrained import Tokenizer

# Images of the picture.
_SHOWN = 20


def evaluate(
  tokenizer: Tokenizer, step: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Metrics of the test split.

  See `psnr` and `objectives.tokenizer.usage`; where the data set is small
  enough to train the LeNet on, 'fd_lenet' and 'class_accuracy' of the
  reconstructions too.

  Returns:
    (report, picture): what reconstruction.json holds, and uint8 [H, W, 3]
    originals over their reconstructions.
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
  if len(train) + len(test) <= sources.IN_MEMORY:
    train = sources.in_memory(train)
    reference = Reference(train, test, config.data.num_classes)
    report |= reference.measure(2 * y - 1, test.labels)
    report['fd_lenet_floor'] = reference.floor
    report['lenet_test_accuracy'] = reference.lenet_accuracy
  report['device'] = f'{jax.device_count()} {jax.devices()[0].device_kind}'
  pairs = np.concatenate([x[:_SHOWN], y[:_SHOWN]])
  return report, viz.grid(viz.to_uint8(2 * pairs - 1), min(_SHOWN, len(x)))


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
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes reconstruction.json and reconstruction.png; returns their paths."""
  root = pathlib.Path(workdir)
  paths = root / 'reconstruction.json', root / 'reconstruction.png'
  files.write_text(paths[0], json.dumps(report, indent=2) + '\n')
  viz.save_png(paths[1], picture, scale=2)
  return paths
