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

  See `psnr` and `usage`; where the data set is small enough to train the
  LeNet on, 'fd_lenet' and 'class_accuracy' of the reconstructions too.

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
    **usage(tokens, config.tokenizer.codebook_size),
  }
  if len(train) + len(test) <= sources.IN_MEMORY:
    report |= _lenet(config, sources.in_memory(train), test, y)
  report['device'] = f'{jax.device_count()} {jax.devices()[0].device_kind}'
  pairs = np.concatenate([x[:_SHOWN], y[:_SHOWN]])
  return report, viz.grid(viz.to_uint8(2 * pairs - 1), min(_SHOWN, len(x)))


def psnr(x: np.ndarray, y: np.ndarray) -> float:
  """Mean over images in [0, 1] of the peak signal-to-noise ratio, in dB."""
  mse = np.mean((x - y) ** 2, axis=tuple(range(1, x.ndim)))
  return float(np.mean(-10 * np.log10(np.maximum(mse, 1e-10))))


def usage(tokens: np.ndarray, codebook_size: int) -> dict[str, float]:
  """Share of the codes that appear, and perplexity (base e) of their use."""
  share = np.bincount(tokens.reshape(-1), minlength=codebook_size) / tokens.size
  used = share[share > 0]
  return {
    'codes_used': len(used) / codebook_size,
    'perplexity': float(np.exp(-np.sum(used * np.log(used)))),
  }


def _lenet(
  config: Any,
  train: sources.ArraySource,
  test: sources.ArraySource,
  y: np.ndarray,
) -> dict[str, float]:
  """What the classifier makes of the reconstructions of `test`."""
  classifier = lenet.load_or_train(train, test, config.data.num_classes)
  images = np.concatenate([train.images, test.images])
  real, _ = classifier(to_unit_range(images))
  features, predicted = classifier(2 * y - 1)
  return {
    'fd_lenet': frechet.frechet_distance(
      *frechet.moments(features), *frechet.moments(real)
    ),
    'fd_lenet_floor': half_split_distance(real),
    'class_accuracy': float(np.mean(predicted == test.labels)),
    'lenet_test_accuracy': classifier.accuracy,
  }


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
