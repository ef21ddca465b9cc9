"""The slices of a sweep: one for each run, by the scripts for one slice."""

from collections.abc import Sequence
import hashlib
import os
import re
import subprocess

from launch.sweep_processes import ROOT
from launch.sweep_runs import Job, train_flags

LAUNCH = ROOT / 'launch'
# What the sweep says itself.
_OWN = ('--workdir', '--dry-run', '--help', '--')


class Slices:
  """Commands that train a run on a slice of its own, and delete the slice."""

  def __init__(self, flags: Sequence[str]):
    """Takes flags of tpu_retry.sh; of --name, runs have the rest.

    Raises:
      ValueError: on a flag that is the sweep's, or a name no slice can have.
    """
    names = [flag.partition('=')[0] for flag in flags]
    if wrong := [name for name in names if name in _OWN]:
      raise ValueError(f'{wrong[0]} cannot be given after --.')
    self._flags = [f for f in flags if not f.startswith('--name=')]
    given = [f.partition('=')[2] for f in flags if f.startswith('--name=')]
    self._prefix = [os.environ.get('ELT_TPU_NAME') or 'elt', *given][-1]
    if not re.fullmatch('[a-z][a-z0-9-]*', self._prefix):
      raise ValueError(
        'Slices are named by lower case letters, digits and hyphens, a letter '
        f'first; got --name={self._prefix}.'
      )

  def name(self, job: Job) -> str:
    """Of at most 57 characters, and the same at every start."""
    words = f'{self._prefix}-{job.name}'.lower()
    words = re.sub('[^a-z0-9]+', '-', words)[:50].rstrip('-')
    return f'{words}-{hashlib.sha256(job.workdir.encode()).hexdigest()[:6]}'

  def train(self, job: Job, *more: str) -> list[str]:
    """Ends when the run has; leaves the slice as it is."""
    own = [*more, f'--name={self.name(job)}', f'--workdir={job.workdir}']
    script = str(LAUNCH / 'tpu_retry.sh')
    return [script, *self._flags, *own, '--', *train_flags(job.run)]

  def delete(self, job: Job) -> list[str]:
    """Ends with 0 also if there is no slice."""
    place = [f for f in self._flags if f.startswith(('--project=', '--zone='))]
    script = str(LAUNCH / 'tpu_stop.sh')
    return [script, *place, f'--name={self.name(job)}', '--delete', '--yes']

  def check(self, job: Job) -> None:
    """Raises ValueError if tpu_retry.sh refuses its flags or this clone.

    From here on all runs are of the revision that is checked out now, whatever
    becomes of the clone meanwhile.
    """
    done = subprocess.run(
      self.train(job, '--dry-run'), capture_output=True, text=True
    )
    if done.returncode:
      raise ValueError(done.stderr.strip().removeprefix('Error: '))
    if not any(flag.startswith('--revision=') for flag in self._flags):
      git = ['git', '-C', str(LAUNCH), 'rev-parse', 'HEAD']
      head = subprocess.run(git, capture_output=True, text=True, check=True)
      self._flags.append(f'--revision={head.stdout.strip()}')
