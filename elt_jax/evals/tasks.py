"""Frames given, the rest drawn: is what a model continues of one piece?

Held-out clips give the frames of a task, as of 'predict:8', and the model draws
the others. Beside it stand clips that the model draws for the same class with
nothing given, pasted after the same frames: what there is to gain by looking.
"""

import json
from typing import Any

from etils import epath
import numpy as np

from elt_jax import edit, files, viz
from elt_jax.data import sources
from elt_jax.data.transforms import to_unit_range
from elt_jax.evals import elastic
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import Loops

# Clips of the picture.
_SHOWN = 4


def evaluate(
  draw: Draw,
  params: Any,
  step: int,
  task: str,
  loops: list[Loops],
  num: int,
  seed: int,
  commit: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
  """Rows of metrics of clips whose given frames are the real ones.

  Args:
    draw: of a masked model of clips.
    params: its parameters.
    step: of the checkpoint.
    task: see `edit.drawn_frames`.
    loops: a row for each.
    num: clips, spread over the test split.
    seed: of the noise.
    commit: give a condition in place of known tokens; see `samplers.masked`.

  Returns:
    (report, picture): {'recipe', 'rows'} with the metrics of `evals.reference`
    of 'drawn' and of 'pasted' clips in each row, and uint8 [H, W, 3] with the
    real clip, the drawn ones of each row, and the one pasted by the last.

  Raises:
    ValueError: if the model is not masked, or the task does not fit it.
  """
  if draw.config.model.family != 'masked':
    raise ValueError(
      f'--task needs a masked model; this one is of family '
      f'{draw.config.model.family!r}.'
    )
  redrawn = edit.drawn_frames(task, draw.tokenizer)[:, None, None, None]
  pixels = elastic.pixel_config(draw)
  reference = elastic.load_reference(draw)
  test = sources.in_memory(sources.load_source(pixels, 'test'))
  clips = elastic.spread(test.images, num)
  labels = elastic.spread(test.labels, num)
  tokens = edit.tokens_of_task(draw.tokenizer, clips, task)
  given = {'condition' if commit else 'known': tokens}
  real = to_unit_range(clips)
  rows, pictures = [], [real[:_SHOWN]]
  for schedule in loops:
    row = {'loops': schedule.label}
    for name, what in (('drawn', given), ('pasted', {})):
      samples = draw(params, labels, schedule, seed, **what)
      whole = np.where(redrawn, samples, real)
      row[name] = reference.measure(whole, labels)
      if name == 'drawn':
        pictures.append(whole[:_SHOWN])
    rows.append(row)
  pictures.append(whole[:_SHOWN])
  recipe = elastic.make_recipe(draw, reference, step, len(clips))
  recipe |= {'labels': 'of the clips', 'seed': seed}
  recipe |= {'task': task, 'commit': commit}
  report = {'recipe': recipe, 'rows': rows}
  return report, viz.versions(viz.to_uint8(np.stack(pictures)))


def table(report: dict[str, Any]) -> str:
  """The rows as text."""
  quality = report['recipe']['quality']
  names = (quality, 'class_accuracy', 'motion')
  lines = [f'{"loops":>12s} {"":6s} ' + ' '.join(f'{n:>14s}' for n in names)]
  for row in report['rows']:
    for kind in ('drawn', 'pasted'):
      values = ' '.join(f'{row[kind][name]:14.3f}' for name in names)
      lines.append(f'{row["loops"]!s:>12s} {kind:6s} {values}')
  recipe = report['recipe']
  lines.append(
    f'{"real":>12s} {"":6s} {recipe["floor"]:14.3f} '
    f'{recipe["test_accuracy"]:14.3f} {recipe["motion_of_data"]:14.3f}'
  )
  return '\n'.join(lines)


def write(
  workdir: str, report: dict[str, Any], picture: np.ndarray
) -> tuple[epath.Path, epath.Path]:
  """Writes e.g. predict-8.json and predict-8.png; returns their paths."""
  recipe = report['recipe']
  name = recipe['task'].replace(':', '-') + '-commit' * recipe['commit']
  root = epath.Path(workdir)
  paths = root / f'{name}.json', root / f'{name}.png'
  files.write_text(paths[0], json.dumps(report, indent=2) + '\n')
  viz.save_png(paths[1], picture, scale=2)
  return paths
