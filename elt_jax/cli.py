"""What the commands share: flags, one-line errors, exit codes.

A wrong argument, config or file ends a command with one line on stderr and
exit code 2; --debug shows the traceback instead.
"""

from collections.abc import Callable
import logging
import pathlib
import re
import sys
from typing import Any

from absl import flags
from etils import epath
import fsspec
from ml_collections import config_flags

from elt_jax import files, hosts

USER_ERROR = 2
STOPPED = 143  # 128 + SIGTERM, as shells say it: saved, and to be gone on with.


def add_config(values: flags.FlagValues) -> None:
  """--config=FILE.py[:variant] and --config.KEY=VALUE."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Experiment, configs/X.py or configs/X.py:variant; '
    '--config.key=value overrides a key.',
    flag_values=values,
  )


def add_sampling(values: flags.FlagValues, loops: str, num: int) -> None:
  """The flags of commands that draw from a workdir.

  Args:
    values: where they are declared.
    loops: what --loops stands for when it is not given.
    num: default of --num.
  """
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string('workdir', None, 'A trained workdir.', flag_values=values)
  string(
    'loops',
    None,
    'Loops, or schedules of loops over the sampling steps, separated by '
    'commas, as in 1,2,decreasing:avg=3,explicit:10x1+15x4,calibrated:0.6,'
    f'converge:tol=0.05; default: {loops}.',
    flag_values=values,
  )
  integer('num', num, 'Samples of each.', flag_values=values)
  integer('seed', 0, 'Seed of the noise.', flag_values=values)
  string(
    'refine',
    None,
    'Masked models: decode the least confident tokens again, as in '
    'rounds=1:share=0.3:steps=4:loops=3.',
    flag_values=values,
  )
  add_sampler(values)


def add_program(values: flags.FlagValues) -> None:
  """Flags in place of keys of config.sample that shape the program."""
  string = flags.DEFINE_string
  flags.DEFINE_integer('steps', None, 'Sampling steps K.', flag_values=values)
  string(
    'method', None, 'ddim or ddpm; confidence or halton.', flag_values=values
  )
  string(
    'watch',
    None,
    'Whose change ends converging loops: output or state.',
    flag_values=values,
  )


def add_sampler(values: flags.FlagValues) -> None:
  """Flags in place of keys of config.sample, whose values are the defaults."""
  add_program(values)
  string, number = flags.DEFINE_string, flags.DEFINE_float
  number('guidance', None, 'Scale s; 1 is off.', flag_values=values)
  string(
    'guidance_mode',
    None,
    'cfg, cfg_shallow, exit or cfg+exit.',
    flag_values=values,
  )
  number('guidance_low', None, 'Least time guided.', flag_values=values)
  number('guidance_high', None, 'Latest time guided.', flag_values=values)
  string(
    'guidance_schedule',
    None,
    'Of the scale over steps: constant, linear or powcosP.',
    flag_values=values,
  )
  number(
    'exit_guidance', None, 'Scale of the exit in cfg+exit.', flag_values=values
  )
  flags.DEFINE_integer(
    'weak_loops',
    None,
    "Loops of cfg_shallow's unconditional pass; the exit of exit.",
    flag_values=values,
  )


# Flags in place of keys of config.sample.
SAMPLE_KEYS = {
  'steps': 'num_steps',
  'method': 'method',
  'watch': 'watch',
  'guidance': 'guidance',
  'guidance_mode': 'guidance_mode',
  'guidance_low': 'guidance_low',
  'guidance_high': 'guidance_high',
  'guidance_schedule': 'guidance_schedule',
  'exit_guidance': 'exit_guidance',
  'weak_loops': 'weak_loops',
}


def sampling(args: flags.FlagValues) -> dict[str, Any]:
  """What was given of `SAMPLE_KEYS`, by its key."""
  return {
    key: args[name].value
    for name, key in SAMPLE_KEYS.items()
    if name in args and args[name].value is not None
  }


def add_multihost(values: flags.FlagValues) -> None:
  """--multihost, of commands that every host of a slice runs."""
  flags.DEFINE_boolean(
    'multihost', False, 'One of several hosts of a run.', flag_values=values
  )


def join_hosts(args: flags.FlagValues, saves: bool = False) -> None:
  """With --multihost, waits for the others; see `hosts.join`."""
  if args.multihost:
    hosts.join(saves=saves)


def add_task(values: flags.FlagValues) -> None:
  """--task and --commit, of models of clips."""
  flags.DEFINE_string(
    'task',
    None,
    'Of clips: predict:4 draws what follows the first 4 frames, interpolate:4 '
    'what is between the first and the last 4.',
    flag_values=values,
  )
  flags.DEFINE_boolean(
    'commit',
    False,
    'What is given may be mended, by a model trained with objective.commit.',
    flag_values=values,
  )


def add_maskgit(values: flags.FlagValues) -> None:
  """--maskgit, which stands in the place of --workdir."""
  flags.DEFINE_string(
    'maskgit',
    None,
    'Public MaskGIT checkpoint, in place of --workdir.',
    flag_values=values,
  )


def maskgit(args: flags.FlagValues) -> str | None:
  """--maskgit, or None; refused beside --workdir."""
  if args.maskgit and args.workdir:
    raise ValueError('--workdir and --maskgit: give one of them.')
  return args.maskgit


def required(args: flags.FlagValues, name: str) -> Any:
  """The value of a flag that must be given."""
  if (value := args[name].value) in (None, ''):
    raise ValueError(f'--{name} is required; see --help.')
  return value


def workdir(args: flags.FlagValues) -> str:
  """--workdir, a directory or the address gs://bucket/directory."""
  path = required(args, 'workdir')
  if not files.is_address(path):
    return path
  if not re.fullmatch('gs://[^/]+/.+', path):
    raise ValueError(
      f'--workdir must be a directory or gs://bucket/directory, got {path}.'
    )
  try:
    epath.Path(path).exists()
  except Exception as e:  # Of gcsfs, google.auth or aiohttp.
    raise ValueError(
      f'--workdir={path} cannot be reached ({type(e).__name__}: {e}). Look at '
      'the name of the bucket, and at `gcloud auth application-default login`.'
    ) from e
  return path


def out_directory(args: flags.FlagValues) -> pathlib.Path:
  """--out, where ArrayRecord files go: of this machine."""
  if files.is_address(path := required(args, 'out')):
    raise ValueError(f'--out must be a directory, got the address {path}.')
  return pathlib.Path(path)


def parse_integers(
  name: str, text: str, low: int, high: int | None
) -> list[int]:
  """'1,2,4' -> [1, 2, 4].

  Raises:
    ValueError: unless all are integers in [low, high].
  """
  try:
    numbers = [int(part) for part in text.split(',')]
  except ValueError:
    numbers = [low - 1]
  if min(numbers) < low or (high is not None and max(numbers) > high):
    bounds = f'of at least {low}' if high is None else f'in {low}..{high}'
    raise ValueError(
      f'--{name} must be integers {bounds}, separated by commas; got {text!r}.'
    )
  return numbers


def set_up_libraries() -> None:
  """What commands and notebooks ask of libraries: to be quiet, and to look."""
  # Says at every start, as a warning, that a read-only manager reads only.
  logging.getLogger('absl').setLevel(logging.ERROR)
  # Warns of every bucket whose type it may not ask for, which is most.
  logging.getLogger('gcsfs').setLevel(logging.ERROR)
  # A listing would be kept, and others write into a bucket too.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False


def run(
  main: Callable[[flags.FlagValues], None],
  define: Callable[[flags.FlagValues], None],
  doc: str,
) -> None:
  """Parses sys.argv, runs `main` on the flags, and exits.

  Args:
    main: the command.
    define: declares its flags.
    doc: what --help prints above the flags.
  """
  values = flags.FlagValues()
  define(values)
  flags.DEFINE_boolean(
    'debug', False, 'Show the traceback of an error.', flag_values=values
  )
  if '--help' in sys.argv[1:]:
    print(f'{doc}\nFlags:\n{values.get_help(prefix="  ")}')
    raise SystemExit(0)
  logging.basicConfig(
    format='%(asctime)s %(message)s', datefmt='%H:%M:%S', force=True
  )
  logging.getLogger('elt_jax').setLevel(logging.INFO)
  set_up_libraries()
  try:
    if rest := values(sys.argv)[1:]:
      raise ValueError(f'Arguments without a flag: {" ".join(rest)}.')
  except Exception as e:  # A config file may raise anything.
    _fail(e, '--debug' in sys.argv[1:], USER_ERROR)
  try:
    main(values)
  except (ValueError, OSError) as e:
    _fail(e, values.debug, USER_ERROR)
  except FloatingPointError as e:
    _fail(e, values.debug, 1)
  except KeyboardInterrupt:
    print('Interrupted.', file=sys.stderr)
    raise SystemExit(130) from None
  raise SystemExit(0)


def describe(error: Exception) -> str:
  """One line of an error, of a config file too."""
  message = str(error)
  if isinstance(error, KeyError):  # Its str is the repr of its argument.
    message = f'Unknown key {error.args[0]}'
  if 'Traceback' in message:  # Of an error raised in the config file.
    message = message.strip().splitlines()[-1]
  return ' '.join(message.split())


def _fail(error: Exception, debug: bool, code: int) -> None:
  if debug:
    raise error
  print(f'Error: {describe(error)} (--debug shows where)', file=sys.stderr)
  raise SystemExit(code) from None
