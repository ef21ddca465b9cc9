"""Draws samples from a trained workdir, at any numbers of loops.

    python -m elt_jax.sample --workdir=runs/mnist --loops=1,2,4 --num=64 \\
        --out=grid.png

One row of the picture per loop count or schedule (`samplers/loops.py` has
their forms), the same seeds in every row; with one, a square. --labels=3 or
--labels=0,1,2 picks classes, which otherwise take turns.

Models of clips draw such rows as --out=clips.mp4 or clips.gif, at --fps frames
a second. Their .png has a film strip per sample and loop count, those of a
sample one under the other.

Masked models edit: --edit=image.png --mask=mask.png draws the white part of
the mask anew, for the class of --labels; the image and its masked copy stand
in front of each row. Those of clips take a video file in its place, and
--task=predict:4 or interpolate:4 in place of a mask. The rest stays as it is;
--commit lets a model trained with objective.commit mend it. --maskgit=DIR, in
place of --workdir, samples from a public MaskGIT checkpoint. With --multihost
every host of a slice runs this command; host 0 writes.
"""

import logging
from typing import Any

from absl import flags
from etils import epath
from jax.sharding import Mesh
import numpy as np

from elt_jax import (
  checkpoint,
  cli,
  edit,
  hosts,
  rows,
  sharding,
  train_state,
  video,
  viz,
)
from elt_jax import config as config_lib
from elt_jax import mesh as mesh_lib
from elt_jax.interop import maskgit
from elt_jax.models import build_model
from elt_jax.samplers import loops, refine
from elt_jax.samplers.draw import Draw
from elt_jax.tokenizers import autoencoder, pretrained
from elt_jax.tokenizers.autoencoder import Autoencoder
from elt_jax.validation import is_latents, validate

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
  kept = epath.Path(workdir) / 'tokenizer'
  if config.model.family == 'masked':
    tokenizer = pretrained.load(kept)
    pretrained.check_fits(config, tokenizer)
  elif is_latents(config):
    tokenizer = autoencoder.load(kept)
  draw = make_draw(config, model, mesh, num, tokenizer, changes, workdir)
  return draw, params, step


def make_draw(
  config: config_lib.ConfigDict,
  model: Any,
  mesh: Mesh,
  num: int,
  tokenizer: pretrained.Tokenizer | Autoencoder | None,
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
  draw: Draw, file: str, mask: str | None, task: str | None
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens to keep [(f',) h', w'], uint8 [2, (f,) h, w, c]).

  The latter are the image or clip, and what of it is shown to the model.
  """
  if draw.config.model.family != 'masked':
    raise ValueError(
      f'--edit needs a masked model; this one is of family '
      f'{draw.config.model.family!r}.'
    )
  d = draw.config.data
  if d.num_frames > 1:
    whole = edit.read_clip(file, draw.config)
  elif task:
    raise ValueError('--task is of clips, and this model draws images.')
  else:
    whole = edit.read_image(file, d.image_size, d.num_channels)
  if task:
    hidden = edit.drawn_frames(task, draw.tokenizer)[:, None, None]
    known = edit.tokens_of_task(draw.tokenizer, whole[None], task)[0]
  else:
    hidden = edit.read_image(mask, d.image_size, 1)[..., 0] >= 128
    hidden = np.broadcast_to(hidden, whole.shape[:-1])
    known = edit.known_tokens(draw.tokenizer, whole[None], hidden)[0]
  masked = np.where(hidden[..., None], np.uint8(128), whole)
  return known, np.stack([whole, masked])


def main(args: flags.FlagValues) -> None:
  cli.join_hosts(args)
  out = epath.Path(cli.required(args, 'out'))
  _check(args)
  if path := cli.maskgit(args):
    read = load_maskgit
  else:
    path, read = cli.workdir(args), load
  draw, params, step = read(path, args.num, **cli.sampling(args))
  rows.check_suffix(out, draw.config)
  schedules, refined = requested(
    args, draw, path, [draw.config.model.max_loops]
  )
  classes = list(range(draw.config.data.num_classes))
  if args.labels is not None:
    classes = cli.parse_integers('labels', args.labels, 0, classes[-1])
  labels = np.resize(classes, args.num)
  given, front = {}, ()
  if args.edit:
    tokens, front = edit_columns(draw, args.edit, args.mask, args.task)
    tokens = np.broadcast_to(tokens, (args.num, *tokens.shape))
    given = {'condition' if args.commit else 'known': tokens}
  drawn = []
  for schedule in schedules:
    row = rows.draw_row(
      draw, params, labels, schedule, args.seed, refined=refined, **given
    )
    drawn.append([*front, *row.samples])
    _log(draw.config, schedule, row)
  names = [viz.loops_name(schedule.label) for schedule in schedules]
  columns = ['given', 'masked'] if args.edit else []
  columns += [f'class {label}' for label in labels]
  picture = rows.lay_out(
    np.array(drawn),
    names,
    columns,
    args.scale,
    wrap=not args.edit,
    plays=out.suffix in video.SUFFIXES,
  )
  hosts.once('samples', lambda: video.save(out, picture, args.fps))
  shown = f'{classes[:20]}{"..." if len(classes) > 20 else ""}'
  print(
    f'{out}: step {step}, loops '
    f'{", ".join(str(schedule.label) for schedule in schedules)} from top to '
    f'bottom, classes {shown} in turn'
  )


def _check(args: flags.FlagValues) -> None:
  """What can be refused before anything is read."""
  for name in ('num', 'scale'):
    if args[name].value < 1:
      raise ValueError(f'--{name} must be at least 1, got {args[name].value}.')
  fastest = 50 if args.out.endswith('.gif') else 240  # Browsers slow it down.
  if not 1 <= args.fps <= fastest:
    raise ValueError(f'--fps must be in 1..{fastest}, got {args.fps}.')
  ways = sum(way is not None for way in (args.mask, args.task))
  if ways != (args.edit is not None):
    raise ValueError(
      '--edit goes with --mask or --task: a picture or clip, and what of it is '
      'drawn anew.'
    )
  if args.commit and not args.edit:
    raise ValueError('--commit is of --edit: there is nothing to go by.')


def _log(
  config: config_lib.ConfigDict, schedule: loops.Loops, row: rows.Row
) -> None:
  run = row.spent[0].loops[:, 0]
  log.info(
    '%d samples, loops %s (%.2f a step over %d steps): %.1f GFLOPs a '
    'sample, %.1f s.',
    len(row.samples),
    schedule.label,
    run.mean(),
    config.sample.num_steps,
    row.gflops,
    row.seconds,
  )
  if schedule.tolerance:
    per_step = ' '.join(f'{n:.3g}' for n in run)
    log.info('Loops run at each step: %s.', per_step)


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='L_max', num=16)
  flags.DEFINE_string(
    'labels', None, 'Classes, as in 3 or 0,1,2.', flag_values=values
  )
  flags.DEFINE_string(
    'edit', None, 'Picture or clip to edit.', flag_values=values
  )
  flags.DEFINE_string(
    'mask', None, 'Picture: white is drawn anew.', flag_values=values
  )
  cli.add_task(values)
  cli.add_maskgit(values)
  cli.add_multihost(values)
  flags.DEFINE_string(
    'out',
    'samples.png',
    'Picture to write; of clips, also .gif or .mp4.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'fps', 8, 'Frames a second of .gif and .mp4.', flag_values=values
  )
  flags.DEFINE_integer(
    'scale', 2, 'Size of a pixel in the picture.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
