"""How well a tokenizer reconstructs the held-out split, and with what codes."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from elt_jax import files, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_unit_range, to_zero_one
from elt_jax.evals import frechet, lenet
from elt_jax.evals.elastic import half_split_distance
from elt_jax.tokenizers.pretrained import Tokenizer

# Images of the picture.
_SHOWN = 20


def evaluate(
  tokenizer: Tokenizer, step: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Metrics of the test split.

  'psnr' is in dB, the mean over images, after clipping to [0, 1];
  'codes_used' the share of the codebook that appears at all; 'perplexity' the
  exponential of the entropy of the codes' use.

  Returns:
    (report, picture): what reconstruction.json holds, and uint8 [H, W, 3]
    originals over their reconstructions.
  """
  config = tokenizer.config
  train, test = (
    sources.in_memory(sources.load_source(config, split))
    for split in sources.SPLITS
  )
  x = to_zero_one(test.images)
  tokens = tokenizer.encode(x)
  y = tokenizer.reconstruct(x)
  mse = np.mean((x - y) ** 2, axis=tuple(range(1, x.ndim)))
  share = np.bincount(
    tokens.reshape(-1), minlength=config.tokenizer.codebook_size
  ) / float(tokens.size)
  used = share[share > 0]
  classifier = lenet.load_or_train(train, test, config.data.num_classes)
  real, _ = classifier(
    np.concatenate([to_unit_range(train.images), to_unit_range(test.images)])
  )
  features, predicted = classifier(2 * y - 1)
  report = {
    'checkpoint_step': step,
    'fingerprint': tokenizer.fingerprint,
    'num_images': len(x),
    'grid': list(tokenizer.grid),
    'codebook_size': len(share),
    'psnr': float(np.mean(-10 * np.log10(np.maximum(mse, 1e-10)))),
    'codes_used': len(used) / len(share),
    'perplexity': float(np.exp(-np.sum(used * np.log(used)))),
    'fd_lenet': frechet.frechet_distance(
      *frechet.moments(features), *frechet.moments(real)
    ),
    'fd_lenet_floor': half_split_distance(real),
    'class_accuracy': float(np.mean(predicted == test.labels)),
    'lenet_test_accuracy': classifier.accuracy,
    'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
  }
  pairs = np.concatenate([x[:_SHOWN], y[:_SHOWN]])
  return report, viz.grid(viz.to_uint8(2 * pairs - 1), min(_SHOWN, len(x)))


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
