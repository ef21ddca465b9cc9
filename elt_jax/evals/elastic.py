"""Elastic evaluation: one checkpoint, a row of metrics per loop schedule."""

import dataclasses
import json
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from elt_jax import files, flops, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_zero_one
from elt_jax.evals.reference import Reference
from elt_jax.evals.telemetry import of_sampling, of_training
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import Loops
from elt_jax.samplers.plan import VALUES, least_loops
from elt_jax.samplers.refine import Refine

# Samples of each schedule that are kept for the picture; clips are wide.
_SHOWN, _SHOWN_CLIPS = 12, 2
# Samples over which telemetry is a mean.
_PROBED = 32


def loop_counts(config: Any) -> list[int]:
  """All up to L_max, and two beyond: 1, 2, 3, 4, 6, 8."""
  most = config.model.max_loops
  low = min(least_loops(config), most)
  return sorted({*range(low, most + 1), most + (most + 1) // 2, 2 * most})


def load_reference(draw: Draw) -> Reference:
  """What the samples of `draw` are measured against: both splits.

  Raises:
    ValueError: if the data set is not known, as of public weights.
  """
  pixels = pixel_config(draw)
  if not pixels.data.source:
    raise ValueError(
      'The images this model was trained on are not here to measure against: '
      'give --metrics=fid,is,pr with a --reference.'
    )
  train, test = (
    sources.in_memory(sources.load_source(pixels, split))
    for split in sources.SPLITS
  )
  return Reference(train, test, draw.config.data.num_classes)


def pixel_config(draw: Draw) -> Any:
  """The config of the data set of images; a model's own may be of tokens."""
  return draw.tokenizer.config if draw.tokenizer else draw.config


def measure(
  draw: Draw,
  params: Any,
  reference: Reference,
  loops: Loops,
  num: int,
  seed: int,
  refined: Refine | None = None,
  **changes: Any,
) -> tuple[dict[str, Any], np.ndarray]:
  """(a row of metrics, samples) of `num` samples drawn in one way.

  Labels take turns, so classes are balanced. 'mean_loops' are those really
  run by the conditional pass of the draft; a schedule that ends early has them
  step by step in 'loops_per_step', and 'loops_saved', the share of the loops
  it might have run. For the arguments see `Draw.sample`.
  """
  config = draw.config
  labels = np.arange(num) % config.data.num_classes
  draw.warm_up(params, loops, refined, **changes)  # Is not timed.
  began = time.monotonic()
  drawn = draw.sample(params, labels, loops, seed, refined=refined, **changes)
  seconds = time.monotonic() - began
  run = drawn.spent[0].loops[:, 0]
  row = {
    'loops': loops.label,
    'mean_loops': float(run.mean()),
    **reference.measure(drawn.samples, labels),
    'gflops_per_sample': flops.gflops_per_sample(config, drawn.spent),
    'seconds_per_sample': seconds / num,
  }
  if loops.tolerance:
    row['loops_saved'] = float(1 - run.mean() / np.mean(loops.steps))
    row['loops_per_step'] = [round(float(n), 2) for n in run]
  return row, drawn.samples


def evaluate(
  draw: Draw,
  params: Any,
  step: int,
  loops: list[Loops],
  num: int,
  seed: int,
  refined: Refine | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
  """A row of `measure` for each of `loops`, the same seeds in every row.

  Returns:
    (report, pictures): {'recipe', 'rows', 'telemetry'} as in elastic.json, and
    uint8 [len(loops), 12, h, w, c] samples, or [len(loops), 2, f, h, w, c].
    For 'telemetry' see `evals.telemetry`.
  """
  reference = load_reference(draw)
  telemetry = {'sampling': of_sampling(draw, params, min(num, _PROBED), seed)}
  rows, pictures = [], []
  for schedule in loops:
    row, samples = measure(
      draw, params, reference, schedule, num, seed, refined
    )
    rows.append(row)
    shown = _SHOWN_CLIPS if samples.ndim == 5 else _SHOWN
    pictures.append(viz.to_uint8(samples[:shown]))
  recipe = make_recipe(draw, reference, step, num)
  recipe |= {'seed': seed}
  if refined:
    recipe['refine'] = dataclasses.asdict(refined)
  report = {'recipe': recipe, 'rows': rows, 'telemetry': telemetry}
  return report, np.stack(pictures)


def make_recipe(
  draw: Draw, reference: Reference, step: int, num: int
) -> dict[str, Any]:
  """How samples are made and measured, but for what the rows say."""
  recipe = recipe_of_samples(draw, step, num) | {
    'reference': (
      f'{pixel_config(draw).data.source}, {len(reference.images)} examples'
    ),
    **reference.facts,
    'device': device(),
  }
  if draw.tokenizer:
    # What is lost before the first sample: as many real images, through the
    # tokenizer and back.
    x = to_zero_one(spread(reference.images, num))
    y = draw.tokenizer.reconstruct(draw.tokenizer.encode(x))
    for name, value in reference.measure(2 * y - 1).items():
      recipe[f'{name}_of_reconstructions'] = value
  return recipe


def recipe_of_samples(draw: Draw, step: int, num: int) -> dict[str, Any]:
  """How samples are made, but for what the rows say."""
  config = draw.config
  s = config.sample
  names = VALUES
  if config.model.family == 'masked':
    names += (
      'mask_schedule',
      'temperature_bias',
      'temperature_scale',
      'choice_temperature',
    )
  recipe = {
    'checkpoint_step': step,
    'weights': f'ema {config.optim.ema_decay}',
    'num_samples': num,
    'labels': 'balanced',
    'sampler': s.method,
    'num_steps': s.num_steps,
    'batch_size': draw.batch_size,
    **{name: s[name] for name in (*names, 'watch', 'clip')},
    'max_loops_in_training': config.model.max_loops,
    'gflops': (
      '2 per multiply-add, guidance passes included, tokenizer left out; '
      'seconds include it'
    ),
  }
  if draw.tokenizer:
    recipe['tokenizer'] = draw.tokenizer.fingerprint
  return recipe


def device() -> str:
  """What seconds are of: '8 TPU v6 lite'."""
  return f'{jax.device_count()} {jax.devices()[0].device_kind}'


def spread(images: np.ndarray, num: int) -> np.ndarray:
  """`num` images, or all, at even distances through the set."""
  return images[np.arange(min(num, len(images))) * len(images) // num]


def table(report: dict[str, Any]) -> str:
  """The rows as text, the floor beside them."""
  recipe = report['recipe']
  quality = recipe['quality']
  clips = 'motion' in report['rows'][0]
  width = max(6, *(len(str(row['loops'])) for row in report['rows']))
  head = f'{"loops":{width}s}   mean   {quality + " ± s.e.":>15s}   '
  head += 'class accuracy   '
  if clips:
    head += 'frame accuracy   motion   '
  lines = [head + 'GFLOPs/sample   ms/sample']
  for row in report['rows']:
    line = (
      f'{row["loops"]!s:>{width}s}   {row["mean_loops"]:4.2f}   '
      f'{row[quality]:8.2f} ± {row[f"{quality}_spread"]:4.2f}   '
      f'{row["class_accuracy"]:14.3f}   '
    )
    if clips:
      line += f'{row["frame_accuracy"]:14.3f}   {row["motion"]:6.3f}   '
    line += (
      f'{row["gflops_per_sample"]:13.2f}   '
      f'{1e3 * row["seconds_per_sample"]:9.2f}'
    )
    if 'loops_saved' in row:
      line += f'   {100 * row["loops_saved"]:.0f}% of loops saved'
    lines.append(line)
  line = (
    f'{"floor":{width + 7}s}   {recipe["floor"]:8.2f}{"":10s}'
    f'{recipe["test_accuracy"]:14.3f}   '
  )
  if clips:
    line += (
      f'{recipe["frame_test_accuracy"]:14.3f}   '
      f'{recipe["motion_of_data"]:6.3f}   '
    )
  lines.append(line + '(half of the real data to the other; the test split)')
  if f'{quality}_of_reconstructions' in recipe:
    lines.append(
      f'{"decoded":{width + 7}s}   '
      f'{recipe[f"{quality}_of_reconstructions"]:8.2f}   (real examples, '
      'encoded and decoded)'
    )
  return '\n'.join(lines)


def write(
  workdir: str, report: dict[str, Any], pictures: np.ndarray
) -> list[epath.Path]:
  """Writes elastic.json, elastic.png and telemetry.png; returns their paths.

  What training logged of its loops is added to the telemetry.
  """
  root = epath.Path(workdir)
  report['telemetry']['training'] = of_training(workdir)
  names = ('elastic.json', 'elastic.png', 'telemetry.png')
  paths = [root / name for name in names]
  files.write_text(paths[0], json.dumps(report, indent=2) + '\n')
  with files.replacing(paths[1]) as temporary:
    viz.elastic_figure(report, pictures, temporary)
  with files.replacing(paths[2]) as temporary:
    viz.telemetry_figure(report, temporary)
  return paths
