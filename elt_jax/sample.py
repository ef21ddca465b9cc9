"""Draws samples from a trained workdir, at any numbers of loops.

    python -m elt_jax.sample --workdir=runs/mnist --loops=1,2,4 --num=64 \\
        --out=grid.png

One row of the picture per loop count or schedule (`samplers/loops.py` has
their forms), the same seeds in every row; with one, a square. --labels=3 or
--labels=0,1,2 picks classes, which otherwise take turns.

Masked models edit: --edit=image.png --mask=mask.png draws the white part of
the mask anew, for the class of --labels; the image and its masked copy stand
in front of each row. --maskgit=DIR, in place of --workdir, samples from a
public MaskGIT checkpoint.
"""

import logging
import math
import pathlib
import time
from typing import Any

from absl import flags
from jax.sharding import Mesh
import numpy as np

from elt_jax import checkpoint, cli, edit, flops, sharding, train_state, viz
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.interop import maskgit
from elt_jax.models import build_model
from elt_jax.samplers import loops, refine
from elt_jax.samplers.draw import Draw
from elt_jax.tokenizers import pretrained
from elt_jax.validation import validate

log = logging.getLogger('elt_jax.sample')


def restore(
  workdir: str,
) -> tuple[config_lib.ConfigDict, Any, Mesh, Any, int]:
  """(config, model, mesh, averaged parameters, step) of a trained workdir.

  Raises:
    ValueError: if the workdir is not one, or has no checkpoint.
  """
  config = config_lib.load(workdir)
  # The mesh of the training machine need not exist here.
  mesh = mesh_lib.data_mesh()
  model = build_model(config, mesh)
  abstract, specs = train_state.param_specs(model, mesh)
  like = sharding.with_shardings(abstract, sharding.to_shardings(specs, mesh))
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    restored = checkpoints.restore_ema(like)
  if restored is None:
    raise ValueError(
      f'{workdir} has no checkpoint yet. Train first, with '
      f'python -m elt_jax.train --config=... --workdir={workdir}'
    )
  return config, model, mesh, *restored


def load(workdir: str, num: int, **changes: Any) -> tuple[Draw, Any, int]:
  """(draw, averaged parameters, step) of a trained generator.

  Args:
    workdir: of the run.
    num: `draw` is made for up to so many samples at a time.
    **changes: keys of config.sample, as in num_steps=12.

  Raises:
    ValueError: as `restore`, if the workdir is of a tokenizer, or if a change
      does not fit the model.
  """
  config, model, mesh, params, step = restore(workdir)
  tokenizer = None
  if config.model.family == 'tokenizer':
    raise ValueError(
      f'{workdir} is a tokenizer, which draws nothing by itself: make tokens '
      f'with python -m elt_jax.tokenize --workdir={workdir} --out=DIR'
    )
  if config.model.family == 'masked':
    tokenizer = pretrained.load(pathlib.Path(workdir) / 'tokenizer')
    pretrained.check_fits(config, tokenizer)
  draw = make_draw(config, model, mesh, num, tokenizer, changes, workdir)
  return draw, params, step


def make_draw(
  config: config_lib.ConfigDict,
  model: Any,
  mesh: Mesh,
  num: int,
  tokenizer: pretrained.Tokenizer | None,
  changes: dict[str, Any],
  workdir: str = '',
) -> Draw:
  """For up to `num` samples at a time; `changes` are keys of config.sample."""
  config = config.copy_and_resolve_references()
  config.sample.update(changes)
  config = validate(config)
  batch_size = min(num, config.sample.batch_size)
  return Draw(config, model, mesh, batch_size, tokenizer, workdir)


def load_tokenizer(workdir: str) -> tuple[pretrained.Tokenizer, int]:
  """(tokenizer of averaged weights, step) of a trained workdir.

  Raises:
    ValueError: as `restore`, or if the workdir is of a generator.
  """
  config, _, _, params, step = restore(workdir)
  if config.model.family != 'tokenizer':
    raise ValueError(
      f'{workdir} holds a {config.model.family} model, not a tokenizer.'
    )
  return pretrained.Tokenizer(config, params), step


def load_maskgit(path: str, num: int, **changes: Any) -> tuple[Draw, Any, int]:
  """As `load`, of a public MaskGIT checkpoint; see `interop.maskgit.load`."""
  config, params, tokenizer = maskgit.load(path)
  mesh = mesh_lib.data_mesh()
  model = build_model(config, mesh)
  return make_draw(config, model, mesh, num, tokenizer, changes), params, 0


def requested(
  args: flags.FlagValues, draw: Draw, workdir: str, default: list[int]
) -> tuple[list[loops.Loops], refine.Refine | None]:
  """(--loops or `default`, --refine), refused before anything is drawn."""
  schedules = [
    loops.parse(form, draw.config, workdir)
    for form in (args.loops.split(',') if args.loops else default)
  ]
  refined = args.refine and refine.parse(args.refine, draw.config)
  for schedule in schedules:
    draw.plans(schedule, refined)
  return schedules, refined


def edit_columns(
  draw: Draw, image: str, mask: str
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens to keep [h', w'], uint8 [2, h, w, c] image and masked image)."""
  if draw.tokenizer is None:
    raise ValueError(
      f'--edit needs a masked model; this one is of family '
      f'{draw.config.model.family!r}.'
    )
  d = draw.config.data
  picture = edit.read_image(image, d.image_size, d.num_channels)
  hidden = edit.read_image(mask, d.image_size, 1)[..., 0] >= 128
  known = edit.known_tokens(draw.tokenizer, picture, hidden)
  masked = np.where(hidden[..., None], np.uint8(128), picture)
  return known, np.stack([picture, masked])


def main(args: flags.FlagValues) -> None:
  out = pathlib.Path(cli.required(args, 'out'))
  _check(args, out)
  if path := cli.maskgit(args):
    read = load_maskgit
  else:
    path, read = cli.workdir(args), load
  draw, params, step = read(path, args.num, **cli.sampling(args))
  config = draw.config
  schedules, refined = requested(args, draw, path, [config.model.max_loops])
  classes = list(range(config.data.num_classes))
  if args.labels is not None:
    classes = cli.parse_integers('labels', args.labels, 0, classes[-1])
  labels = np.resize(classes, args.num)
  known, front = None, np.empty(0)
  if args.edit:
    known, front = edit_columns(draw, args.edit, args.mask)
    known = np.broadcast_to(known, (args.num, *known.shape))
  cells = []
  for schedule in schedules:
    began = time.monotonic()
    samples, spent = draw.sample(
      params, labels, schedule, args.seed, known, refined
    )
    cells += [*front, *viz.to_uint8(samples)]
    log.info(
      '%d samples, loops %s (%.2f a step over %d steps): %.1f GFLOPs a '
      'sample, %.1f s.',
      args.num,
      schedule.label,
      spent[0].loops[:, 0].mean(),
      config.sample.num_steps,
      sum(flops.flops_per_sample(config, *run) for run in spent) / 1e9,
      time.monotonic() - began,
    )
    if schedule.tolerance:
      per_step = ' '.join(f'{n:.3g}' for n in spent[0].loops[:, 0])
      log.info('Loops run at each step: %s.', per_step)
  columns = args.num + len(front)
  if len(schedules) == 1 and not args.edit:
    columns = math.ceil(math.sqrt(args.num))
  viz.save_png(out, viz.grid(np.stack(cells), columns), scale=args.scale)
  shown = f'{classes[:20]}{"..." if len(classes) > 20 else ""}'
  print(
    f'{out}: step {step}, loops '
    f'{", ".join(str(schedule.label) for schedule in schedules)} from top to '
    f'bottom, classes {shown} in turn'
  )


def _check(args: flags.FlagValues, out: pathlib.Path) -> None:
  """What can be refused before anything is read."""
  if out.suffix != '.png':
    raise ValueError(f'--out must end in .png, got {out}.')
  if args.num < 1:
    raise ValueError(f'--num must be at least 1, got {args.num}.')
  if (args.edit is None) != (args.mask is None):
    raise ValueError(
      '--edit and --mask go together: a picture, and what of it is drawn anew.'
    )


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='L_max', num=16)
  flags.DEFINE_string(
    'labels', None, 'Classes, as in 3 or 0,1,2.', flag_values=values
  )
  flags.DEFINE_string(
    'edit', None, 'Picture to edit, with --mask.', flag_values=values
  )
  flags.DEFINE_string(
    'mask', None, 'Picture: white is drawn anew.', flag_values=values
  )
  cli.add_maskgit(values)
  flags.DEFINE_string(
    'out', 'samples.png', 'Picture to write.', flag_values=values
  )
  flags.DEFINE_integer(
    'scale', 2, 'Size of a pixel in the picture.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
