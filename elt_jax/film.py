"""What the head says after each loop: one sample as a film strip.

    python -m elt_jax.film --workdir=runs/mnist --out=film.png

A row per sampling step, the noisiest on top, and a column per loop, up to twice
L_max. Each cell is the whole sample as the network has it at that step, if the
loop ended there: the exits that ILSD trains. The steps go on from L_max loops.
Of clips, --out=film.gif or film.mp4 plays all cells at once.
"""

from typing import Any

from absl import flags
from etils import epath
import numpy as np

from elt_jax import cli, sample, video, viz
from elt_jax.samplers.draw import Draw


def film(
  draw: Draw,
  params: Any,
  label: int,
  seed: int,
  num_loops: int,
  num_rows: int,
  scale: int = 2,
) -> np.ndarray:
  """The film strip of one sample, labelled: uint8 [(f,) H, W, 3].

  Args:
    draw: of a generator.
    params: its averaged parameters.
    label: class of the sample.
    seed: of its noise.
    num_loops: columns.
    num_rows: steps shown, at even distances from the first to the last; all, if
      there are fewer.
    scale: how many pixels wide a pixel becomes.
  """
  exits = viz.to_uint8(draw.exits(params, [label], num_loops, seed)[0])
  num_steps, trained = len(exits), draw.config.model.max_loops
  shown = np.linspace(0, num_steps - 1, min(num_rows, num_steps))
  shown = shown.round().astype(int)
  columns = [
    f'L = {n}' + (' (L_max)' if n == trained else '')
    for n in range(1, num_loops + 1)
  ]
  names = [f'step {k + 1} of {num_steps}' for k in shown]
  return video.side_by_side(exits[shown], names, columns, scale)


def main(args: flags.FlagValues) -> None:
  out = epath.Path(cli.required(args, 'out'))
  for name in ('rows', 'scale'):
    if args[name].value < 1:
      raise ValueError(f'--{name} must be at least 1, got {args[name].value}.')
  draw, params, step = sample.load(cli.workdir(args), 1, **cli.sampling(args))
  clips = draw.config.data.num_frames > 1
  allowed = video.SUFFIXES if clips else ('.png',)
  if out.suffix not in allowed:
    raise ValueError(
      f'--out must end in {" or ".join(allowed)} for this model, got {out}.'
    )
  trained = draw.config.model.max_loops
  num_loops = 2 * trained if args.loops is None else args.loops
  if num_loops < trained:
    raise ValueError(
      f'--loops must be at least L_max = {trained}, which the steps go on '
      f'from; got {num_loops}.'
    )
  picture = film(
    draw, params, args.label, args.seed, num_loops, args.rows, args.scale
  )
  video.save(out, picture)
  print(
    f'{out}: step {step}, class {args.label}, seed {args.seed}; loops beyond '
    f'{trained} were never trained'
  )


def _define(values: flags.FlagValues) -> None:
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string('workdir', None, 'A trained workdir.', flag_values=values)
  string(
    'out', None, 'Picture to write; of clips, .gif or .mp4.', flag_values=values
  )
  integer('loops', None, 'Columns; default: 2 L_max.', flag_values=values)
  integer('rows', 6, 'Sampling steps shown.', flag_values=values)
  integer('label', 3, 'Class of the sample.', flag_values=values)
  integer('seed', 0, 'Seed of the noise.', flag_values=values)
  integer('scale', 3, 'Size of a pixel in the picture.', flag_values=values)
  cli.add_sampler(values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
