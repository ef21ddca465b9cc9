"""Measures a trained workdir at several numbers of loops.

    python -m elt_jax.evaluate --workdir=runs/mnist --loops=1,2,3,4 --num=1000

Writes elastic.json (a row of metrics per loop count or schedule, and the
recipe), elastic.png (the curves over a strip of samples) and telemetry.png
(what each loop does, in sampling and over training) to the workdir. By default
loops 1..L_max, then in larger steps to 2 L_max.

With --task=predict:8 (or interpolate:4, see elt_jax.sample) clips of the test
split give their frames and a masked model draws the others, beside clips that
are drawn with nothing given and pasted in: predict-8.json, predict-8.png.

With --metrics=fid,sfid,is,pr, samples are measured as OpenAI's evaluation suite
does, in metrics.json, a row of which is never measured twice:

    python -m elt_jax.evaluate --workdir=runs/8Nx4L --num=50000 --loops=1,2,4 \\
        --metrics=fid,is,pr --reference=VIRTUAL_imagenet256_labeled.npz \\
        --inception=pt_inception-2015-12-05-6726825d.pth

--inception is the file of mseitzer/pytorch-fid; --save_samples keeps what is
drawn, for the suite itself.

With --multihost every host of a slice runs this command, on a workdir that all
of them reach; host 0 writes.

Of a tokenizer, it measures the reconstructions of the held-out split instead,
and writes reconstruction.json and reconstruction.png.
"""

from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath

from elt_jax import cli, hosts, sample
from elt_jax import config as config_lib
from elt_jax.evals import adm, elastic, fid, inception, reconstruction, tasks

# Flags of --metrics.
_OF_METRICS = ('reference', 'inception', 'unequal', 'save_samples')


def main(args: flags.FlagValues) -> None:
  cli.join_hosts(args)
  workdir = cli.workdir(args)
  if args.num < 2:
    raise ValueError(f'--num must be at least 2, got {args.num}.')
  if config_lib.load(workdir).model.family == 'tokenizer':
    of_samples = ('loops', 'num', 'seed', 'refine', 'task', 'commit', 'metrics')
    of_samples += tuple(cli.SAMPLE_KEYS)
    if given := [name for name in of_samples if args[name].present]:
      raise ValueError(
        f'--{given[0]} is of samples, and {workdir} is a tokenizer.'
      )
    return evaluate_tokenizer(workdir)
  draw, params, step = sample.load(workdir, args.num, **cli.sampling(args))
  counts = elastic.loop_counts(draw.config)
  schedules, refined = sample.requested(args, draw, workdir, counts)
  if args.metrics:
    if refined or args.task or args.commit:
      raise ValueError('--metrics: no --refine, --task or --commit beside it.')
    report = evaluate_metrics(args, draw, params, step, schedules)
    path = epath.Path(workdir) / fid.REPORT
    return _finish(fid.table(report), lambda: [path])
  if given := [name for name in _OF_METRICS if args[name].present]:
    raise ValueError(f'--{given[0]} is of --metrics=fid,is,pr.')
  if args.task:
    if refined:
      raise ValueError('--refine and --task do not go together.')
    report, picture = tasks.evaluate(
      draw, params, step, args.task, schedules, args.num, args.seed, args.commit
    )
    write = lambda: tasks.write(workdir, report, picture)
    return _finish(tasks.table(report), write)
  if args.commit:
    raise ValueError('--commit is of --task: there is nothing to go by.')
  report, pictures = elastic.evaluate(
    draw, params, step, schedules, args.num, args.seed, refined
  )
  write = lambda: elastic.write(workdir, report, pictures)
  _finish(elastic.table(report), write)


def evaluate_metrics(
  args: flags.FlagValues, draw: Any, params: Any, step: int, schedules: Any
) -> dict[str, Any]:
  """The report of --metrics."""
  fid.check_metrics(args.metrics)
  d = elastic.pixel_config(draw).data
  if d.num_frames > 1 or d.num_channels not in (1, 3):
    raise ValueError(
      f'--metrics is of images, and {args.workdir} draws {d.num_frames} frames '
      f'of {d.num_channels} channels.'
    )
  file = adm.Reference(cli.required(args, 'reference'))
  if not args.unequal:
    fid.check_count(file, args.metrics, args.num)
  network = inception.Inception(inception.load(cli.required(args, 'inception')))
  recipe = fid.make_recipe(
    draw, step, args.num, args.seed, args.metrics, file, network
  )
  return fid.evaluate(
    draw,
    params,
    args.workdir,
    schedules,
    network,
    file,
    recipe,
    args.save_samples,
  )


def evaluate_tokenizer(workdir: str) -> None:
  tokenizer, step = sample.load_tokenizer(workdir)
  report, picture = reconstruction.evaluate(tokenizer, step)
  write = lambda: reconstruction.write(workdir, report, picture)
  _finish(reconstruction.table(report), write)


def _finish(text: str, write: Callable[[], Sequence[epath.Path]]) -> None:
  """Prints the report and what `write` gives, the files; on host 0 alone."""

  def finish() -> None:
    print(text)
    print(*write(), sep='\n')

  hosts.once('report', finish)


def _define(values: flags.FlagValues) -> None:
  cli.add_sampling(values, loops='1..L_max and on to 2 L_max', num=1000)
  cli.add_task(values)
  cli.add_multihost(values)
  flags.DEFINE_list(
    'metrics', [], 'Some of fid,sfid,is,pr.', flag_values=values
  )
  for name, text in (
    ('reference', 'With --metrics: .npz with mu and sigma, or arr_0.'),
    ('inception', 'With --metrics: weights, .pth, .safetensors or .npz.'),
  ):
    flags.DEFINE_string(name, None, text, flag_values=values)
  for name, text in (
    ('unequal', 'FID of other numbers of samples and reference images.'),
    ('save_samples', 'With --metrics: writes samples-LOOPS.npz, arr_0.'),
  ):
    flags.DEFINE_boolean(name, False, text, flag_values=values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
