"""Measures a trained workdir at several numbers of loops.

    python -m elt_jax.evaluate --workdir=runs/mnist --loops=1,2,3,4 --num=1000

Writes elastic.json (a row of metrics per loop count or schedule, and the
recipe), elastic.png (the curves over a strip of samples) and telemetry.png
(what each loop does, in sampling and over training) to the workdir. By default
loops 1..L_max, then in larger steps to 2 L_max.

With --task=predict:8 (or interpolate:4, see elt_jax.sample) clips of the test
split give their frames and a masked model draws the others, beside clips that
are drawn with nothing given and pasted in: predict-8.json, predict-8.png.

With --metrics=fid,sfid,is,pr, images are measured as OpenAI's evaluation suite
does, in metrics.json, a row of which is never measured twice:

    python -m elt_jax.evaluate --workdir=runs/8Nx4L --num=50000 --loops=1,2,4 \\
        --metrics=fid,is,pr --reference=VIRTUAL_imagenet256_labeled.npz \\
        --inception=pt_inception-2015-12-05-6726825d.pth

--inception is the file of mseitzer/pytorch-fid; --save_samples keeps what is
drawn, for the suite itself. Without --reference one is made of the training
set, fid-train.npz in the workdir, which other runs and the suite read. Clips
have an FVD, by the protocol of MAGVIT or of StyleGAN-V or, without --protocol,
of --num samples:

    python -m elt_jax.evaluate --workdir=runs/ucf101_6Nx4L --loops=1,2,4,6 \\
        --metrics=fvd --protocol=magvit --i3d=i3d-kinetics-400.ckpt

It is against the training set too, kept as fvd-magvit.npz. `evals/i3d.py` says
which files of I3D there are; --metrics=fvd,is takes C3D's besides, --c3d and
--c3d_mean.

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
from elt_jax.evals import (
  adm,
  c3d,
  clip_score,
  elastic,
  fid,
  fvd,
  i3d,
  inception,
  metrics,
  reconstruction,
  tasks,
)

# Flags of --metrics, and those that are of images or of clips alone.
_OF_METRICS = ('reference', 'unequal', 'save_samples')
_OF_IMAGES, _OF_CLIPS = ('inception',), ('protocol', 'i3d', 'c3d', 'c3d_mean')


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
  num = _num(args)
  draw, params, step = sample.load(workdir, num, **cli.sampling(args))
  counts = elastic.loop_counts(draw.config)
  schedules, refined = sample.requested(args, draw, workdir, counts)
  if args.metrics:
    if refined or args.task or args.commit:
      raise ValueError('--metrics: no --refine, --task or --commit beside it.')
    report = evaluate_metrics(args, draw, params, step, schedules, num)
    path = epath.Path(workdir) / metrics.REPORT
    return _finish(metrics.table(report), lambda: [path])
  of_metrics = _OF_METRICS + _OF_IMAGES + _OF_CLIPS
  if given := [name for name in of_metrics if args[name].present]:
    raise ValueError(f'--{given[0]} is of --metrics.')
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
  args: flags.FlagValues,
  draw: Any,
  params: Any,
  step: int,
  schedules: Any,
  num: int,
) -> dict[str, Any]:
  """The report of --metrics."""
  pixels = elastic.pixel_config(draw)
  of_clips = pixels.data.num_frames > 1
  if pixels.data.num_channels not in (1, 3):
    raise ValueError(
      f'--metrics is of 1 or 3 channels, and {args.workdir} draws '
      f'{pixels.data.num_channels}.'
    )
  for name in _OF_IMAGES if of_clips else _OF_CLIPS:
    if args[name].present:
      kinds = ('images', 'clips') if of_clips else ('clips', 'images')
      raise ValueError(f'--{name} is of %s, and the model draws %s.' % kinds)
  measures = (_clips if of_clips else _images)(args, pixels)
  save = args.save_samples
  return metrics.evaluate(
    draw, params, step, args.workdir, schedules, measures, num, args.seed, save
  )


def _protocol(args: flags.FlagValues) -> fvd.Protocol:
  if args.protocol:
    return fvd.PROTOCOLS[args.protocol]
  return fvd.Protocol('', args.num)


def _num(args: flags.FlagValues) -> int:
  """Samples of a row.

  Raises:
    ValueError: if --protocol says how many there are, and so does --num.
  """
  protocol = _protocol(args)
  num = protocol.num * protocol.repeats
  if args.protocol and args['num'].present:
    raise ValueError(
      f'--protocol={args.protocol} takes {num} samples: leave --num out.'
    )
  return num


def _images(args: flags.FlagValues, pixels: Any) -> list[metrics.Measure]:
  """The metrics of a model of images."""
  metrics.check_names(args.metrics, fid.METRICS, 'images')
  file = adm.Reference(args.reference) if args.reference else None
  if file and not args.unequal:
    fid.check_count(file, args.metrics, args.num)
  network = inception.Inception(inception.load(cli.required(args, 'inception')))
  return [
    fid.Images(args.metrics, network, args.num, pixels, args.workdir, file)
  ]


def _clips(args: flags.FlagValues, pixels: Any) -> list[metrics.Measure]:
  """The metrics of a model of clips."""
  metrics.check_names(args.metrics, ('fvd', 'is'), 'clips')
  protocol, measures = _protocol(args), []
  if 'fvd' in args.metrics:
    weights = i3d.load(cli.required(args, 'i3d'))
    network = i3d.I3D(weights, protocol.resizing)
    measures.append(
      fvd.Fvd(
        protocol,
        network,
        pixels,
        args.workdir,
        file=args.reference,
        unequal=args.unequal,
      )
    )
  if 'is' in args.metrics:
    weights = c3d.load(
      cli.required(args, 'c3d'), cli.required(args, 'c3d_mean')
    )
    measures.append(clip_score.ClipScore(protocol, c3d.C3D(weights), pixels))
  return measures


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
    'metrics',
    [],
    'Some of fid,sfid,is,pr, of images; of fvd,is, of clips.',
    flag_values=values,
  )
  for name, text in (
    ('reference', 'With --metrics: .npz with mu and sigma, or arr_0.'),
    ('inception', 'With --metrics: weights, .pth, .safetensors or .npz.'),
    ('i3d', 'With --metrics=fvd: weights, .pt, .ckpt, .safetensors or .npz.'),
    ('c3d', 'With --metrics=is, of clips: conv3d_deepnetA_ucf.npz.'),
    ('c3d_mean', 'With --c3d: mean2.npz.'),
  ):
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_enum(
    'protocol',
    None,
    list(fvd.PROTOCOLS),
    'Of --metrics=fvd,is, in place of --num.',
    flag_values=values,
  )
  for name, text in (
    ('unequal', 'FID, FVD of other numbers of samples than of the reference.'),
    ('save_samples', 'With --metrics: writes samples-LOOPS.npz, arr_0.'),
  ):
    flags.DEFINE_boolean(name, False, text, flag_values=values)


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
