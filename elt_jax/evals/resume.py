"""Reports that grow by rows: what an earlier command left of one."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath


def read_report(
  path: epath.Path, kind: str, key: Mapping[str, Any], *also: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """(recipe, rows) of the report at `path`; empty ones if there is none.

  Args:
    path: of a JSON file.
    kind: of the report, for messages, as in 'a frontier'.
    key: what its recipe has to say for its rows to be gone on with.
    *also: other names that its recipe must have.

  Raises:
    ValueError: if it cannot be read, or was made with another key.
  """
  if not path.exists():
    return {}, []
  try:
    report = json.loads(path.read_text())
    recipe, rows = dict(report['recipe'].items()), report['rows']
    for name in also:
      _ = recipe[name]
  except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(
      f'{path} is no report of {kind} ({e!r}): move it away.'
    ) from e
  check_same(path, recipe, key, 'Move it away, or give the same flags.')
  return recipe, rows


def check_same(
  path: epath.PathLike,
  recipe: Mapping[str, Any],
  wanted: Mapping[str, Any],
  remedy: str,
) -> None:
  """Raises ValueError, with `remedy`, unless `recipe` says what is `wanted`."""
  for name, value in wanted.items():
    if (there := recipe.get(name)) != value:
      raise ValueError(f'{path} is of {name} = {there}, not {value}. {remedy}')
