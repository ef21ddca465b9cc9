"""The runs of a sweep, from parts that are combined.

    from elt_jax.hyper import product, sweep

    def get_sweep():
      return product([
        sweep('optim.learning_rate', [1e-3, 3e-4]),
        sweep('model.max_loops', [2, 3]),
      ])

gives four runs, 'learning_rate=0.001,max_loops=2' and so on. A part is a list
of runs; a run may be written as a dict of any of 'overrides', 'name', 'config'
(in place of the sweep's CONFIG) and 'loops' (in place of its LOOPS).
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any

import numpy as np

# Of a file name, and of the commands it is given to.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}')


@dataclasses.dataclass(frozen=True)
class Run:
  """What one run has of its own.

  Attributes:
    overrides: values of config keys, by 'section.key'.
    name: as given by the file, or after `expand`.
    config: experiment, as in --config.
    loops: of the evaluation, as in --loops.
    named: what `name` stands for; the rest of a product is added to it.
  """

  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  name: str = ''
  config: str = ''
  loops: str = ''
  named: frozenset[str] = frozenset()

  @property
  def settings(self) -> dict[str, Any]:
    """The overrides, and the config as one more key."""
    config = {'config': self.config} if self.config else {}
    return config | dict(self.overrides)


Part = Sequence[Run | Mapping[str, Any]]


def sweep(key: str, values: Iterable[Any]) -> list[Run]:
  """A run for each value of a key."""
  if isinstance(values, str):
    raise ValueError(f'sweep: {key} needs a list of values, got {values!r}.')
  runs = [Run({key: _plain(value)}) for value in values]
  if not runs:
    raise ValueError(f'sweep: {key} has no values.')
  return runs


def fixed(key: str, value: Any) -> list[Run]:
  """One run: in a product, a value that all its runs share."""
  return sweep(key, [value])


def product(parts: Iterable[Part]) -> list[Run]:
  """A run for every combination; the last part varies fastest."""
  return [_merge(runs) for runs in itertools.product(*_parts(parts))]


def zipit(parts: Iterable[Part]) -> list[Run]:
  """The first runs of all parts as one, then the second ones, ..."""
  parts = _parts(parts)
  if len({len(part) for part in parts}) > 1:
    lengths = [f'{", ".join(part[0].settings)}: {len(part)}' for part in parts]
    raise ValueError(
      f'zipit: the parts must have as many runs each ({"; ".join(lengths)}).'
    )
  return [_merge(runs) for runs in zip(*parts, strict=True)]


def chainit(parts: Iterable[Part]) -> list[Run]:
  """The runs of the first part, then those of the second, ..."""
  return [run for part in _parts(parts) for run in part]


def expand(part: Part, config: str, loops: str) -> list[Run]:
  """Runs with a name, config and loops each.

  Names say what differs between the runs, unless they were given.

  Args:
    part: runs of a sweep.
    config: of runs that have none of their own.
    loops: of runs that have none of their own.

  Raises:
    ValueError: if there are none, two have the same name or are the same, or
      a name cannot be that of a directory.
  """
  (runs,) = _parts([part])
  runs = [_with_defaults(run, config, loops) for run in runs]
  varied = varying(runs) if len(runs) > 1 else list(runs[0].overrides)
  found: list[Run] = []
  for run in runs:
    run = dataclasses.replace(run, name=_derive_name(run, varied))
    _check(run, found)
    found.append(run)
  return found


def _with_defaults(run: Run, config: str, loops: str) -> Run:
  # The config of all has no part in the name of a run that was given one.
  common = {'config'} if run.name and not run.config else set()
  return dataclasses.replace(
    run,
    config=run.config or config,
    loops=run.loops or loops,
    named=run.named | common,
  )


def _check(run: Run, others: Sequence[Run]) -> None:
  if not _NAME.fullmatch(run.name):
    raise ValueError(
      f'{run.name!r} cannot name a run: give it a name of at most 100 letters, '
      "digits and . _ = , + -, as in {'name': ..., 'overrides': ...}."
    )
  for other in others:
    if run.settings == other.settings:
      raise ValueError(
        f'The runs {other.name} and {run.name} are the same: {_describe(run)}.'
      )
    if run.name == other.name:
      raise ValueError(
        f'Two runs have the name {run.name}: {_describe(other)} and '
        f'{_describe(run)}. Give them names.'
      )


def varying(runs: Sequence[Run]) -> list[str]:
  """The keys whose values are not the same in all runs."""
  missing = object()
  first = runs[0].settings
  return [
    key
    for key in dict.fromkeys(key for run in runs for key in run.settings)
    if any(
      run.settings.get(key, missing) != first.get(key, missing) for run in runs
    )
  ]


def _parts(parts: Iterable[Part]) -> list[list[Run]]:
  parts = [[_as_run(entry) for entry in part] for part in parts]
  if not parts or not all(parts):
    raise ValueError('A sweep needs runs, and there is a list without any.')
  return parts


def _as_run(entry: Run | Mapping[str, Any]) -> Run:
  if isinstance(entry, Run):
    return entry
  known = ('overrides', 'name', 'config', 'loops')
  if not isinstance(entry, Mapping) or set(entry) - set(known):
    raise ValueError(f'A run is a dict of {", ".join(known)}, got {entry!r}.')
  overrides = entry.get('overrides', {})
  run = Run(
    **{
      **entry,
      'overrides': {key: _plain(value) for key, value in overrides.items()},
    }
  )
  named = run.settings if run.name else ()
  return dataclasses.replace(run, named=frozenset(named))


def _merge(runs: Sequence[Run]) -> Run:
  """One run with what all of them set."""
  overrides, given = {}, {'config': '', 'loops': ''}
  for run in runs:
    twice = [key for key in run.overrides if key in overrides]
    twice += [key for key in given if given[key] and getattr(run, key)]
    if twice:
      raise ValueError(f'{twice[0]} is given twice, by {_describe(run)} too.')
    overrides |= run.overrides
    given = {key: given[key] or getattr(run, key) for key in given}
  return Run(
    overrides,
    name=','.join(run.name for run in runs if run.name),
    named=frozenset().union(*(run.named for run in runs)),
    **given,
  )


def _derive_name(run: Run, varied: Sequence[str]) -> str:
  last = lambda key: key.rpartition('.')[2]
  names = [run.name] if run.name else []
  for key, value in run.settings.items():
    if key not in varied or key in run.named:
      continue
    alone = [last(other) for other in varied].count(last(key)) == 1
    if key == 'config':  # configs/X.py:variant, or configs/X.py.
      path, _, variant = value.partition(':')
      names.append(_safe(variant or path.rpartition('/')[2]))
    else:
      names.append(f'{last(key) if alone else key}={_safe(value)}')
  return ','.join(names) or 'base'


def _safe(value: Any) -> str:
  text = '-'.join(map(str, value)) if isinstance(value, tuple) else str(value)
  return re.sub('[^A-Za-z0-9.+-]+', '_', text)


def _plain(value: Any) -> Any:
  """Numbers of numpy would be written as np.float64(0.1) in a command."""
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, (list, tuple)):
    return tuple(_plain(inner) for inner in value)
  return value


def _describe(run: Run) -> str:
  items = [f'{key}={value}' for key, value in run.settings.items()]
  return ', '.join(items) or 'no overrides'
