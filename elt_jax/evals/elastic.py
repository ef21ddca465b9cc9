"""Elastic evaluation: one checkpoint, a row of metrics per loop count."""

import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from elt_jax import files, flops, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.evals.reference import Reference
from elt_jax.samplers.draw import Draw

# Samples of each loop count that are kept for the picture.
_SHOWN = 12


def evaluate(
  config: Any,
  draw: Draw,
  params: Any,
  step: int,
  loops: list[int],
  num: int,
  seed: int,
  guidance: float | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
  """Metrics of `num` samples at each loop count.

  Labels take turns, so classes are balanced; the same seeds serve every loop
  count. The reference of `fd_lenet` is the whole data set, both splits.

  Returns:
    (report, pictures): {'recipe', 'rows'} as in elastic.json, and uint8
    [len(loops), 12, h, w, c] samples.
  """
  # A masked model's data are tokens; its tokenizer knows the images.
  pixels = draw.tokenizer.config if draw.tokenizer else config
  train, test = (
    sources.in_memory(sources.load_source(pixels, split))
    for split in sources.SPLITS
  )
  classes = config.data.num_classes
  reference = Reference(train, test, classes)
  labels = np.arange(num) % classes
  # Compiles, and is not timed.
  draw(params, labels[:1], loops[0], seed, guidance)

  rows, pictures = [], []
  for count in loops:
    began = time.monotonic()
    samples = draw(params, labels, count, seed, guidance)
    seconds = time.monotonic() - began
    rows.append(
      {
        'loops': count,
        **reference.measure(samples, labels),
        'gflops_per_sample': (
          flops.flops_per_sample(config, count, guidance) / 1e9
        ),
        'seconds_per_sample': seconds / num,
      }
    )
    pictures.append(viz.to_uint8(samples[:_SHOWN]))
  s = config.sample
  recipe = {
    'checkpoint_step': step,
    'weights': f'ema {config.optim.ema_decay}',
    'num_samples': num,
    'labels': 'balanced',
    'seed': seed,
    'sampler': s.method,
    'num_steps': s.num_steps,
    'guidance': s.guidance if guidance is None else guidance,
    'guidance_interval': [s.guidance_low, s.guidance_high],
    'max_loops_in_training': config.model.max_loops,
    'fd_lenet_reference': (
      f'{pixels.data.source}, {len(reference.images)} examples'
    ),
    'fd_lenet_floor': reference.floor,
    'lenet_test_accuracy': reference.lenet_accuracy,
    'gflops': (
      '2 per multiply-add, guidance passes included, tokenizer left out; '
      'seconds include it'
    ),
    'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
  }
  if draw.tokenizer:
    # What is lost before the first sample: as many real images, through the
    # tokenizer and back.
    x = to_zero_one(spread(reference.images, num))
    y = draw.tokenizer.reconstruct(draw.tokenizer.encode(x))
    recipe['tokenizer'] = draw.tokenizer.fingerprint
    for name in (
      'guidance_schedule',
      'mask_schedule',
      'temperature_bias',
      'temperature_scale',
      'choice_temperature',
    ):
      recipe[name] = s[name]
    recipe['fd_lenet_reconstruction'] = reference.measure(2 * y - 1)['fd_lenet']
  return {'recipe': recipe, 'rows': rows}, np.stack(pictures)


def spread(images: np.ndarray, num: int) -> np.ndarray:
  """`num` images, or all, at even distances through the set."""
  return images[np.arange(min(num, len(images))) * len(images) // num]


def table(report: dict[str, Any]) -> str:
  """The rows as text, the floor beside them."""
  recipe = report['recipe']
  lines = ['loops   fd_lenet   class accuracy   GFLOPs/sample   ms/sample']
  for row in report['rows']:
    lines.append(
      f'{row["loops"]:5d}   {row["fd_lenet"]:8.2f}   '
      f'{row["class_accuracy"]:14.3f}   {row["gflops_per_sample"]:13.2f}   '
      f'{1e3 * row["seconds_per_sample"]:9.2f}'
    )
  lines.append(
    f'floor   {recipe["fd_lenet_floor"]:8.2f}   '
    f'{recipe["lenet_test_accuracy"]:14.3f}   (half of the real data '
    'against the other half; LeNet on the test split)'
  )
  if 'fd_lenet_reconstruction' in recipe:
    lines.append(
      f'tokens  {recipe["fd_lenet_reconstruction"]:8.2f}   (real images '
      'through the tokenizer and back)'
    )
  return '\n'.join(lines)


def write(
  workdir: str, report: dict[str, Any], pictures: np.ndarray
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes elastic.json and elastic.png; returns their paths."""
  root = pathlib.Path(workdir)
  files.write_text(root / 'elastic.json', json.dumps(report, indent=2) + '\n')
  with files.replacing(root / 'elastic.png') as temporary:
    viz.elastic_figure(report, pictures, temporary)
  return root / 'elastic.json', root / 'elastic.png'
