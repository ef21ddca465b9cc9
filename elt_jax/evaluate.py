"""Measures a trained workdir at several numbers of loops.

    python -m elt_jax.evaluate --workdir=runs/mnist --loops=1,2,3,4 --num=1000

Writes elastic.json (a row of metrics per loop count or schedule, and the
recipe), elastic.png (the curves over a strip of samples) and telemetry.png
(what each loop does, in sampling and over training) to the workdir. By default
loops 1..L_max, then in larger steps to 2 L_max.

With --task=predict:8 (or interpolate:4, see elt_jax.sample) clips of the test
split give their frames and a masked model draws the others, beside clips that
are drawn with nothing given and pasted in: predict-8.json, predict-8.png.

Of a tokenizer, it measures the reconstructions of the held-out split instead,
and writes reconstruction.json and reconstruction.png.
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from elt_jax import cli, sample
from elt_jax import config as config_lib
from elt_jax.evals import elastic, reconstruction, tasks


def main(args: flags.FlagValues) -> None:
  workdir = cli.workdir(args)
  if args.num < 2:
    raise ValueError(f'--num must be at least 2, got {args.num}.')
  if config_lib.load(workdir).model.family == 'tokenizer':
    of_samples = ('loops', 'num', 'seed', 'refine', 'task', 'commit')
    of_samples += tuple(cli.SAMPLE_KEYS)
    if given := [name for name in of_samples if args[name].present]:
      raise ValueError(
        f'--{given[0]} is of samples, and {workdir} is a tokenizer.'
      )
    return evaluate_tokenizer(workdir)
  draw, params, step = sample.load(workdir, args.num, **cli.sampling(args))
  counts = elastic.loop_counts(draw.config)
  schedules, refined = sample.requested(args, draw, workdir, counts)
  if args.task:
    if refined:
      raise ValueError('--refine and --task do not go together.')
    report, picture = tasks.evaluate(
      draw, params, step, args.task, schedules, args.num, args.seed, args.commit
    )
    print(tasks.table(report))
    return _print(tasks.write(workdir, report, picture))
  if args.commit:
    raise ValueError('--commit is of --task: there is nothing to go by.')
  report, pictures = elastic.evaluate(
    draw, params, step, schedules, args.num, args.seed, refined
  )
  print(elastic.table(report))
  _print(elastic.write(workdir, report, pictures))


def evaluate_tokenizer(workdir: str) -> None:
  tokenizer, step = sample.load_tokenizer(workdir)
  report, picture = reconstruction.evaluate(tokenizer, step)
  print(reconstruction.table(report))
  _print(reconstruction.write(workdir, report, picture))


def _print(paths: Sequence[epath.Path]) -> None:
  for path in paths:
    print(path)


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='1..L_max and on to 2 L_max', num=1000)
  cli.add_task(values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
