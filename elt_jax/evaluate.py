"""Measures a trained workdir at several numbers of loops.

    python -m elt_jax.evaluate --workdir=runs/mnist --loops=1,2,3,4 --num=1000

Writes elastic.json (a row of metrics per loop count, and the recipe) and
elastic.png (the curves over a strip of samples) to the workdir. By default
loops 1..L_max.

Of a tokenizer, it measures the reconstructions of the held-out split instead,
and writes reconstruction.json and reconstruction.png.
"""

from absl import flags

from elt_jax import cli, sample
from elt_jax import config as config_lib
from elt_jax.evals import elastic, reconstruction


def main(args: flags.FlagValues) -> None:
  workdir = cli.workdir(args)
  loops = args.loops and cli.parse_integers('loops', args.loops, 1, None)
  if args.num < 2:
    raise ValueError(f'--num must be at least 2, got {args.num}.')
  if config_lib.load(workdir).model.family == 'tokenizer':
    given = [
      name
      for name in ('loops', 'num', 'seed', 'guidance', 'steps', 'method')
      if args[name].present
    ]
    if given:
      raise ValueError(
        f'--{given[0]} is of samples, and {workdir} is a tokenizer.'
      )
    return evaluate_tokenizer(workdir)
  config, draw, params, step = sample.load(
    workdir, args.num, args.steps, args.method
  )
  loops = loops or list(range(1, config.model.max_loops + 1))
  report, pictures = elastic.evaluate(
    config, draw, params, step, loops, args.num, args.seed, args.guidance
  )
  print(elastic.table(report))
  for path in elastic.write(workdir, report, pictures):
    print(path)


def evaluate_tokenizer(workdir: str) -> None:
  tokenizer, step = sample.load_tokenizer(workdir)
  report, picture = reconstruction.evaluate(tokenizer, step)
  print(reconstruction.table(report))
  for path in reconstruction.write(workdir, report, picture):
    print(path)


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='1..L_max', num=1000)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
