"""Trains and evaluates every run of a sweep, here or on TPU slices.

    python launch/sweep.py --sweep=configs/sweeps/mnist_ablation.py \\
        --workdir=runs/ablation [--num=500] [--list] [--dry_run]
    ... --parallel=4                      # four at a time on this machine
    ... --workdir=gs://BUCKET/ablation --tpu=4 -- --type=v6e-8 --spot

A sweep file names its experiment (CONFIG), the loop counts of the evaluation
(LOOPS; '' trains only) and its runs (get_sweep, see `elt_jax.hyper`). Each run
has its own workdir, WORKDIR/NAME, with the output of its commands in sweep.log.
WORKDIR receives summary.csv and summary.png.

Killed and started again, the sweep goes on where it was: what is finished is
not repeated, and a training that is still alive is waited for. A run that fails
does not end the others. SIGTERM and Ctrl-C let all runs save, and end the sweep
with 143 and 130; 1 is the exit code if any run failed.

With --parallel each run has its share of the TPU chips or GPUs of the machine.
With --tpu each trains on a slice of its own, which launch/tpu_retry.sh makes
and keeps, and which is deleted when its run has ended; after `--` come flags of
that script. They are named after --name, or ELT_TPU_NAME. Evaluation is on this
machine, and so are the logs, in runs/sweeps/BUCKET. Interrupted, the sweep
leaves the slices and what they train as they are.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import queue
import shlex
import sys
import threading
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from elt_jax import cli, files
from elt_jax import config as config_lib
from launch import sweep_processes, sweep_report, sweep_runs
from launch.sweep_processes import Failed, Processes, Stopped
from launch.sweep_runs import Job
from launch.sweep_tpu import Slices

DONE, BEFORE = 'finished', 'was finished'


class Sweep:
  """Brings all runs to their end.

  Attributes:
    failed: what went wrong, by the name of the run.
  """

  def __init__(
    self,
    jobs: list[Job],
    workdir: str,
    num: int,
    slices: Slices | None,
    processes: Processes,
  ):
    self.failed: dict[str, str] = {}
    self._jobs = jobs
    self._workdir = workdir
    self._num = num
    self._slices = slices
    self._processes = processes
    # Beside trainings on slices, this machine evaluates one at a time.
    self._machine = threading.Lock() if slices else contextlib.nullcontext()
    self._summary = threading.Lock()

  def run(self, shares: list[dict[str, str]]) -> None:
    """Works on as many runs at once as there are `shares` of the machine."""
    # What outlived a killed sweep holds devices that are to be shared anew; of
    # slices, it is watched first, since it counts.
    alive = [j for j in self._jobs if sweep_processes.is_locked(j.lock)]
    if not self._slices:
      for job in alive:
        with contextlib.suppress(Stopped), self._lock(job):
          pass
    waiting = queue.SimpleQueue()
    for job in sorted(self._jobs, key=lambda job: job not in alive):
      waiting.put(job)
    with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
      for done in [pool.submit(self._work, waiting, s) for s in shares]:
        done.result()

  def _work(self, waiting: queue.SimpleQueue, share: dict[str, str]) -> None:
    with contextlib.suppress(queue.Empty, Stopped):
      while True:
        job = waiting.get_nowait()
        began = time.monotonic()
        did = self._attempt(job, share)
        say(f'{job.name}: {did} ({time.monotonic() - began:.0f} s)')

  def _attempt(self, job: Job, share: dict[str, str]) -> str:
    """Works on a run; returns in a few words what became of it."""
    try:
      with self._lock(job) as lock:
        did = self._finish(job, lock, share)
    except Stopped:
      raise
    except Exception as e:  # Of a bucket too, which may raise anything.
      why = str(e) if isinstance(e, Failed) else f'{type(e).__name__}: {e}'
      self.failed[job.name] = why
      return f'failed: {why}'
    if did == DONE:
      try:
        self.summarize()
      except Exception as e:  # The run is whole; a report may be of another.
        say(f'No summary yet: {type(e).__name__}: {e}')
    return did

  def _lock(self, job: Job) -> contextlib.AbstractContextManager[int]:
    waits = f'{job.name}: still alive from an earlier start; waits for its end'
    return self._processes.lock(job.lock, waits)

  def _finish(self, job: Job, lock: int, share: dict[str, str]) -> str:
    """Does what is left of a run; returns `DONE`, or `BEFORE` if it was."""
    run = functools.partial(
      self._processes.run, log=job.log, lock=lock, environment=share
    )
    self._processes.check()
    trained = job.trained()
    if trained:
      # As a training does that has nothing left to do.
      config_lib.claim_workdir(job.config, job.workdir)
    else:
      say(f'{job.name}: trains; see {job.log}')
    if self._slices:
      self._train_on_slice(job, trained, run)
    elif not trained:
      run(train_command(job))
    if not job.run.loops or job.report(self._num):
      return BEFORE if trained else DONE
    if trained:
      say(f'{job.name}: is trained, evaluates; see {job.log}')
    with self._machine:
      run(evaluate_command(job, self._num))
    return DONE

  def _train_on_slice(
    self, job: Job, trained: bool, run: Callable[[list[str]], None]
  ) -> None:
    """Leaves no slice behind, unless the sweep is stopped."""
    name, failure = self._slices.name(job), None
    try:
      if not trained:
        run(self._slices.train(job))
    except Failed as e:
      failure = e
    except Stopped:
      say(
        f'{job.name}: its slice {name} goes on; so does this sweep, if started'
      )
      raise
    try:
      # Also that of an earlier start, killed before it came to this.
      run(self._slices.delete(job))
    except Failed as e:
      raise Failed(
        f'{failure or "trained"}; {name} may still be up: {e}'
      ) from e
    if failure:
      raise Failed(f'{failure} Its slice is deleted now.')

  def summarize(self) -> str:
    """Writes the summary of what there is; returns it as text."""
    with self._summary:
      reports = {
        job.name: report
        for job in self._jobs
        if job.run.loops and (report := self._report(job))
      }
      if not reports:
        return 'There is nothing to summarize.'
      runs = [job.run for job in self._jobs]
      paths = sweep_report.write(self._workdir, runs, reports)
      return '\n'.join([sweep_report.table(reports), *map(str, paths)])

  def _report(self, job: Job) -> dict[str, Any] | None:
    """The report of a run; None, and a word of it, if it cannot be read."""
    try:
      return job.report(self._num)
    except Exception as e:  # Of a bucket too, which may raise anything.
      say(f'{job.name}: not in the summary: {type(e).__name__}: {e}')
      return None


def train_command(job: Job) -> list[str]:
  flags = sweep_runs.train_flags(job.run)
  return _python('train', f'--workdir={job.workdir}', *flags)


def evaluate_command(job: Job, num: int) -> list[str]:
  loops = f'--loops={job.run.loops}'
  return _python('evaluate', f'--workdir={job.workdir}', loops, f'--num={num}')


def _python(module: str, *args: str) -> list[str]:
  return [sys.executable, '-m', f'elt_jax.{module}', *args]


def say(line: str) -> None:
  print(f'{line}\n', end='', flush=True)  # Whole, whichever thread it is of.


def print_commands(
  jobs: list[Job], num: int, slices: Slices | None, shares: list[dict[str, str]]
) -> None:
  """What would be run, --dry_run."""
  if len(shares) > 1:
    say(f'# {len(shares)} runs at a time')
  for share in filter(None, shares):
    say(f'# with {shlex.join(f"{k}={v}" for k, v in share.items())}')
  for job in jobs:
    commands = []
    trained = job.trained()
    if not trained:
      commands.append(slices.train(job) if slices else train_command(job))
    if slices:
      commands.append(slices.delete(job))
    if job.run.loops and not (trained and job.report(num)):
      commands.append(evaluate_command(job, num))
    for command in commands:
      say(shlex.join(command))


def main(args: flags.FlagValues, tpu_flags: list[str]) -> None:
  sweep = sweep_runs.load(cli.required(args, 'sweep'))
  if args.list:
    for job in sweep_runs.make_jobs(sweep, ''):
      say(f'{job.name}\t{" ".join(sweep_runs.train_flags(job.run))}')
    return
  if args.num < 2:
    raise ValueError(f'--num must be at least 2, got {args.num}.')
  workdir = cli.workdir(args)
  if not files.is_address(workdir):
    workdir = os.path.abspath(workdir)
  jobs = sweep_runs.make_jobs(sweep, workdir)
  sweep_runs.check_workdirs(jobs)
  slices = _slices(args, workdir, tpu_flags)
  shares = [{}] * args.tpu if slices else sweep_processes.shares(args.parallel)
  if args.dry_run:
    return print_commands(jobs, args.num, slices, shares)
  if slices:
    slices.check(jobs[0])
  with Processes() as processes:
    sweep = Sweep(jobs, workdir, args.num, slices, processes)
    waits = f'Another sweep is alive in {workdir}; waits for its end'
    lock = jobs[0].local.parent / 'sweep.lock'
    with contextlib.suppress(Stopped), processes.lock(lock, waits):
      sweep.run(shares)
    if processes.signal:
      say('Stopped; started again, the sweep goes on.')
      raise SystemExit(128 + processes.signal)
  say(sweep.summarize())
  if sweep.failed:
    for name, why in sweep.failed.items():
      print(f'Error: {name}: {why}', file=sys.stderr)
    raise SystemExit(1)


def _slices(
  args: flags.FlagValues, workdir: str, tpu_flags: list[str]
) -> Slices | None:
  if args.tpu is None:
    if tpu_flags:
      raise ValueError(f'{tpu_flags[0]}, after --, is for --tpu.')
    return None
  if args['parallel'].present:
    raise ValueError('--parallel and --tpu: give one of them.')
  if not files.is_address(workdir):
    raise ValueError(f'--tpu needs --workdir=gs://..., got {workdir}.')
  return Slices(tpu_flags)


def _define(values: flags.FlagValues) -> None:
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  boolean = flags.DEFINE_boolean
  string('sweep', None, 'A file as in configs/sweeps.', flag_values=values)
  string('workdir', None, 'Directory of all runs.', flag_values=values)
  integer('num', 500, 'Samples of a loop count.', flag_values=values)
  integer(
    'parallel',
    1,
    'Runs at a time on this machine.',
    lower_bound=1,
    flag_values=values,
  )
  integer(
    'tpu',
    None,
    'Runs at a time, each on a TPU slice.',
    lower_bound=1,
    flag_values=values,
  )
  boolean('list', False, 'Print the runs alone.', flag_values=values)
  boolean('dry_run', False, 'Print the commands alone.', flag_values=values)


def command() -> None:
  at = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  tpu_flags = sys.argv[at + 1 :]
  del sys.argv[at:]
  cli.run(functools.partial(main, tpu_flags=tpu_flags), _define, __doc__)


if __name__ == '__main__':
  command()
