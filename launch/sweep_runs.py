"""The runs of a sweep file, each checked before any is started."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
from types import ModuleType
from typing import Any

from absl import flags
from etils import epath
import ml_collections
from ml_collections import config_flags

from elt_jax import checkpoint, cli, files, hyper
from elt_jax import config as config_lib
from elt_jax.samplers import loops as loops_lib
from elt_jax.validation import validate
from launch import sweep_report
from launch.sweep_processes import ROOT

# Logs and locks of sweeps whose workdir is in a bucket.
STATE = ROOT / 'runs' / 'sweeps'


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A run and where it is.

  Attributes:
    run: its name, overrides, config and loops.
    config: what these make.
    workdir: a directory or an address.
    local: directory of this machine for its log and its lock.
  """

  run: hyper.Run
  config: ml_collections.ConfigDict
  workdir: str
  local: pathlib.Path

  @property
  def name(self) -> str:
    return self.run.name

  @property
  def log(self) -> pathlib.Path:
    return self.local / 'sweep.log'

  @property
  def lock(self) -> pathlib.Path:
    return self.local / 'sweep.lock'

  def trained(self) -> bool:
    """Whether the last step is saved."""
    return self.config.train.num_steps in checkpoint.saved_steps(self.workdir)

  def report(self, num: int) -> dict[str, Any] | None:
    """The evaluation with `num` samples; None if it is yet to be made."""
    return sweep_report.read(self.config, self.workdir, self.run.loops, num)


def load(path: str) -> ModuleType:
  """The sweep file as a module.

  Raises:
    ValueError: if it is not one.
  """
  if not pathlib.Path(path).is_file() or not path.endswith('.py'):
    raise ValueError(f'There is no sweep file {path}.')
  spec = importlib.util.spec_from_file_location('sweep_file', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:
    raise ValueError(f'{path}: {type(e).__name__}: {e}') from e
  for name in ('CONFIG', 'LOOPS', 'get_sweep'):
    if not hasattr(module, name):
      raise ValueError(f'The sweep file {path} defines no {name}.')
  return module


def make_jobs(sweep: ModuleType, workdir: str) -> list[Job]:
  """The runs of a sweep file, for WORKDIR/NAME.

  Raises:
    ValueError: naming the run, if its config or loops are not valid.
  """
  try:
    found = sweep.get_sweep()
  except Exception as e:
    raise ValueError(f'get_sweep: {type(e).__name__}: {e}') from e
  runs = hyper.expand(found, sweep.CONFIG, sweep.LOOPS)
  local = pathlib.Path(workdir)
  if files.is_address(workdir):
    local = STATE / workdir.partition('://')[2]
  jobs = []
  for run in runs:
    try:
      config = build_config(run)
      _check_loops(run, config)
    except ValueError as e:
      raise ValueError(f'Run {run.name}: {e}') from e
    at = str(epath.Path(workdir) / run.name)
    jobs.append(Job(run, config, at, local / run.name))
  return jobs


def check_workdirs(jobs: Sequence[Job]) -> None:
  """Raises ValueError if a workdir belongs to another config."""
  for job in jobs:
    try:
      config_lib.check_workdir(job.config, job.workdir)
    except ValueError as e:
      raise ValueError(f'Run {job.name}: {e}') from e


def train_flags(run: hyper.Run) -> list[str]:
  """What of the command line of a training is of the run."""
  overrides = [f'--config.{key}={v}' for key, v in run.overrides.items()]
  return [f'--config={run.config}', *overrides]


def build_config(run: hyper.Run) -> ml_collections.ConfigDict:
  """The config that a training will make of its command line.

  Raises:
    ValueError: if it is not valid, or not what the overrides say.
  """
  path = run.config.partition(':')[0]
  if not (ROOT / path).is_file():
    raise ValueError(f'there is no config file {path}.')
  config_flag = f'--config={ROOT / run.config}'
  config = _parse([config_flag])
  for key in run.overrides:
    try:
      _get(config, key)
    except (KeyError, TypeError) as e:
      raise ValueError(f'{path} has no key {key}.') from e
  config = _parse([config_flag, *train_flags(run)[1:]])
  for key, value in run.overrides.items():
    if (parsed := _get(config, key)) != value:
      raise ValueError(
        f'{key} = {value!r} would be {parsed!r} after its way through the '
        'command line; give it in that type.'
      )
  return validate(config)


def _parse(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  values = flags.FlagValues()
  argv = ['', *arguments]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values.config
  except Exception as e:  # A config file may raise anything.
    raise ValueError(cli.describe(e)) from e


def _get(config: Any, key: str) -> Any:
  for name in key.split('.'):
    config = config[name]
  return config


def _check_loops(run: hyper.Run, config: ml_collections.ConfigDict) -> None:
  if not isinstance(run.loops, str):
    raise ValueError(f"loops are text, as in '1,2,4'; got {run.loops!r}.")
  if not run.loops:
    return
  if config.model.family == 'tokenizer':
    raise ValueError("a tokenizer has no loops: LOOPS must be ''.")
  for form in run.loops.split(','):
    if not form.startswith('calibrated'):  # It is in the trained workdir.
      loops_lib.parse(form, config)
