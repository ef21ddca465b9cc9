"""Experiment configs: flags, checks across fields, JSON in the workdir.

A config is a Python file with `get_config([variant])` returning a
`ml_collections.ConfigDict` made from `configs/base.py`. It is locked when
loaded, so a misspelt key is an error, and `validation` checks its values
before anything runs.
"""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath
import ml_collections

from configs.base import get_base
from elt_jax import files
from elt_jax.validation import validate

ConfigDict = ml_collections.ConfigDict

# What may differ between a workdir's config and the one it is resumed with:
# nothing here changes the numbers of the run, but for rounding.
RESUMABLE = (
  'checkpoint.',
  'mesh.',
  'profile.',
  'sample.',
  'data.num_threads',
  'data.skip_unreadable',
  'model.remat',
  'model.scan_layers',
  'model.unroll_loops',
  'train.log_every_steps',
  'train.sample_every_steps',
  'train.telemetry_every_steps',
)


def sample_shape(config: ConfigDict) -> tuple[int, ...]:
  """Shape of one example: (h, w, c), or (f, h, w, c) with several frames."""
  d = config.data
  frames = () if d.num_frames == 1 else (d.num_frames,)
  return (*frames, d.image_size, d.image_size, d.num_channels)


def to_json(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def load(workdir: epath.PathLike) -> ConfigDict:
  """The config a workdir was trained with.

  Keys that came to `configs/base.py` later have its defaults, which leave what
  was there before as it is.

  Raises:
    ValueError: if the workdir or its config.json is missing or unreadable.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'{workdir} is not a workdir: it has no config.json. Train first, '
      'with python -m elt_jax.train --config=... --workdir=...'
    )
  try:
    config = get_base()
    config.update(_tuples(json.loads(path.read_text())))
    return validate(config)
  except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} is not a config of this version: {e}') from e


def _tuples(value: Any) -> Any:
  """JSON has lists where configs have tuples."""
  if isinstance(value, dict):
    return {key: _tuples(inner) for key, inner in value.items()}
  return tuple(value) if isinstance(value, list) else value


def _flat(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def claim_workdir(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Writes config.json, after `check_workdir`."""
  check_workdir(config, workdir)
  files.write_text(epath.Path(workdir) / 'config.json', to_json(config))


def check_workdir(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Checks that the run in a workdir, if it was started, is of `config`.

  Raises:
    ValueError: if the workdir holds checkpoints of another config, naming the
      keys that differ. `RESUMABLE` keys may.
  """
  path = epath.Path(workdir) / 'config.json'
  checkpoints = path.parent / 'checkpoints'
  if path.exists() and checkpoints.is_dir() and any(checkpoints.iterdir()):
    old, new = dict(_flat(load(workdir))), dict(_flat(config))
    differ = [
      f'{key}: {old.get(key)!r} there, {new.get(key)!r} here'
      for key in sorted(old.keys() | new.keys())
      if old.get(key) != new.get(key) and not key.startswith(RESUMABLE)
    ]
    if differ:
      raise ValueError(
        f'{workdir} belongs to another config ({"; ".join(differ)}). Use '
        'another --workdir, or the values of the first run.'
      )
