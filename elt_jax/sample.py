"""Draws samples from a trained workdir, at any numbers of loops.

    python -m elt_jax.sample --workdir=runs/mnist --loops=1,2,4 --num=64 \\
        --out=grid.png

One row of the picture per loop count, the same seeds in every row; with one
loop count, a square. --labels=3 or --labels=0,1,2 picks classes, which
otherwise take turns.

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

from elt_jax import checkpoint, cli, edit, sharding, train_state, viz
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.interop import maskgit
from elt_jax.models import build_model
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


def load(
  workdir: str, num: int, steps: int | None = None, method: str | None = None
) -> tuple[config_lib.ConfigDict, Draw, Any, int]:
  """(config, draw, averaged parameters, step) of a trained generator.

  Args:
    workdir: of the run.
    num: `draw` is made for up to so many samples at a time.
    steps: K; None takes sample.num_steps.
    method: None takes sample.method.

  Raises:
    ValueError: as `restore`, if the workdir is of a tokenizer, or if `steps`
      or `method` does not fit the model.
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
  config = _resolve(config, steps, method)
  batch_size = min(num, config.sample.batch_size)
  return config, Draw(config, model, mesh, batch_size, tokenizer), params, step


def _resolve(
  config: config_lib.ConfigDict, steps: int | None, method: str | None
) -> config_lib.ConfigDict:
  """The config with what was asked for at the command line."""
  config = config.copy_and_resolve_references()
  if steps is not None:
    config.sample.num_steps = steps
  if method is not None:
    config.sample.method = method
  return validate(config)


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


def load_maskgit(
  path: str, num: int, steps: int | None = None, method: str | None = None
) -> tuple[config_lib.ConfigDict, Draw, Any, int]:
  """As `load`, of a public MaskGIT checkpoint; see `interop.maskgit.load`."""
  config, params, tokenizer = maskgit.load(path)
  config = _resolve(config, steps, method)
  mesh = mesh_lib.data_mesh()
  model = build_model(config, mesh)
  batch_size = min(num, config.sample.batch_size)
  return config, Draw(config, model, mesh, batch_size, tokenizer), params, 0


def edit_columns(
  draw: Draw, config: config_lib.ConfigDict, image: str, mask: str
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens to keep [h', w'], uint8 [2, h, w, c] image and masked image)."""
  if draw.tokenizer is None:
    raise ValueError(
      f'--edit needs a masked model; this one is of family '
      f'{config.model.family!r}.'
    )
  d = config.data
  picture = edit.read_image(image, d.image_size, d.num_channels)
  hidden = edit.read_image(mask, d.image_size, 1)[..., 0] >= 128
  known = edit.known_tokens(draw.tokenizer, picture, hidden)
  masked = np.where(hidden[..., None], np.uint8(128), picture)
  return known, np.stack([picture, masked])


def main(args: flags.FlagValues) -> None:
  loops = args.loops and cli.parse_integers('loops', args.loops, 1, None)
  out = pathlib.Path(cli.required(args, 'out'))
  _check(args, out)
  if path := cli.maskgit(args):
    read = load_maskgit
  else:
    path, read = cli.workdir(args), load
  config, draw, params, step = read(path, args.num, args.steps, args.method)
  loops = loops or [config.model.max_loops]
  classes = list(range(config.data.num_classes))
  if args.labels is not None:
    classes = cli.parse_integers('labels', args.labels, 0, classes[-1])
  labels = np.resize(classes, args.num)
  known, front = None, np.empty(0)
  if args.edit:
    known, front = edit_columns(draw, config, args.edit, args.mask)
    known = np.broadcast_to(known, (args.num, *known.shape))
  cells = []
  for count in loops:
    began = time.monotonic()
    samples = draw(params, labels, count, args.seed, args.guidance, known)
    cells += [*front, *viz.to_uint8(samples)]
    log.info(
      '%d samples at %d loops, %d steps: %.1f s.',
      args.num,
      count,
      draw.num_steps,
      time.monotonic() - began,
    )
  columns = args.num + len(front)
  if len(loops) == 1 and not args.edit:
    columns = math.ceil(math.sqrt(args.num))
  viz.save_png(out, viz.grid(np.stack(cells), columns), scale=args.scale)
  shown = f'{classes[:20]}{"..." if len(classes) > 20 else ""}'
  print(
    f'{out}: step {step}, loops {loops} from top to bottom, classes {shown} '
    'in turn'
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
