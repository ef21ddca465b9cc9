"""Draws samples from a trained workdir, at any numbers of loops.

    python -m elt_jax.sample --workdir=runs/mnist --loops=1,2,4 --num=64 \\
        --out=grid.png

One row of the picture per loop count, the same seeds in every row; with one
loop count, a square. --labels=3 or --labels=0,1,2 picks classes, which
otherwise take turns.
"""

import logging
import math
import pathlib
import time

from absl import flags
import numpy as np

from elt_jax import checkpoint, cli, sharding, train_state, viz
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.models.elt import build_model
from elt_jax.samplers.draw import Draw

log = logging.getLogger('elt_jax.sample')


def load(
  workdir: str, num: int
) -> tuple[config_lib.ConfigDict, Draw, dict, int]:
  """(config, draw, averaged parameters, step) of a trained workdir.

  `draw` is made for up to `num` samples at a time.

  Raises:
    ValueError: if the workdir is not one, or has no checkpoint.
  """
  config = config_lib.load(workdir)
  # The mesh of the training machine need not exist here.
  mesh = mesh_lib.build_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model = build_model(config, mesh)
  abstract, specs = train_state.param_specs(config, model, mesh)
  like = sharding.with_shardings(abstract, sharding.to_shardings(specs, mesh))
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    restored = checkpoints.restore_ema(like)
  if restored is None:
    raise ValueError(
      f'{workdir} has no checkpoint yet. Train first, with '
      f'python -m elt_jax.train --config=... --workdir={workdir}'
    )
  params, step = restored
  batch_size = min(num, config.sample.batch_size)
  return config, Draw(config, model, mesh, batch_size), params, step


def main(args: flags.FlagValues) -> None:
  loops = args.loops and cli.parse_integers('loops', args.loops, 1, None)
  out = pathlib.Path(cli.required(args, 'out'))
  if out.suffix != '.png':
    raise ValueError(f'--out must end in .png, got {out}.')
  if args.num < 1:
    raise ValueError(f'--num must be at least 1, got {args.num}.')
  config, draw, params, step = load(cli.workdir(args), args.num)
  loops = loops or [config.model.max_loops]
  last = config.data.num_classes - 1
  classes = list(range(last + 1))
  if args.labels is not None:
    classes = cli.parse_integers('labels', args.labels, 0, last)
  labels = np.resize(classes, args.num)
  rows = []
  for count in loops:
    began = time.monotonic()
    rows.append(draw(params, labels, count, args.seed, args.guidance))
    log.info(
      '%d samples at %d loops, %d steps: %.1f s.',
      args.num,
      count,
      draw.num_steps,
      time.monotonic() - began,
    )
  columns = args.num if len(loops) > 1 else math.ceil(math.sqrt(args.num))
  pictures = viz.to_uint8(np.concatenate(rows))
  viz.save_png(out, viz.grid(pictures, columns), scale=args.scale)
  print(
    f'{out}: step {step}, loops {loops} from top to bottom, '
    f'classes {classes} in turn'
  )


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='L_max', num=16)
  flags.DEFINE_string(
    'labels', None, 'Classes, as in 3 or 0,1,2.', flag_values=values
  )
  flags.DEFINE_string(
    'out', 'samples.png', 'Picture to write.', flag_values=values
  )
  flags.DEFINE_integer(
    'scale', 2, 'Size of a pixel in the picture.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
