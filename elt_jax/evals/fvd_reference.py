"""What FVD is measured against: I3D's features of clips of the training set.

    mu, sigma   float64 [repeats, 400] and [repeats, 400, 400]
    count       clips of each repeat
    labels      int32 [repeats * count], of those clips
    recipe      JSON: which clips, and how they were seen

An .npz of mu [400] and sigma [400, 400] alone is a reference too.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np

from elt_jax import files
from elt_jax.data import sources
from elt_jax.evals.frechet import Moments
from elt_jax.evals.i3d_network import CLASSES
from elt_jax.evals.training_set import in_parts

# Clips in memory at a time.
_PART = 64


@dataclasses.dataclass(frozen=True)
class Reference:
  """Moments of features.

  Attributes:
    moments: (mean [400], covariance [400, 400]) of each repeat, float64.
    count: clips of each; None where that is not known.
    labels: int32 [repeats * count], or None.
    recipe: of the clips; {} where it is not known.
  """

  moments: list[tuple[np.ndarray, np.ndarray]]
  count: int | None
  labels: np.ndarray | None
  recipe: Mapping[str, Any]


def training_clips(pixels: Any, ucf_split: str | None) -> Any:
  """The config of the training set whose clips are the reference.

  Args:
    pixels: config of the data set of clips.
    ucf_split: in place of its own, of UCF-101; None leaves it.
  """
  config = pixels.copy_and_resolve_references()
  config.data.windows = 1
  if ucf_split and config.data.source.startswith('ucf101:'):
    config.data.ucf_split = ucf_split
  return config


def make_recipe(
  config: Any, count: int, repeats: int, preprocessing: str, i3d: str
) -> dict[str, Any]:
  """Which clips of `training_clips` are seen, and how."""
  d = config.data
  recipe = {'source': d.source, 'split': 'train'}
  if d.source.startswith('ucf101:'):
    recipe['ucf_split'] = d.ucf_split
  names = ('num_frames', 'frame_stride', 'image_size')
  return recipe | {
    **{name: d[name] for name in names},
    'count': count,
    'repeats': repeats,
    'preprocessing': preprocessing,
    'i3d': i3d,
  }


def measured(
  config: Any, recipe: Mapping[str, Any], network: Callable[..., np.ndarray]
) -> Reference:
  """Of the training set of `config`, by `make_recipe`.

  Examples come in random order, the same for every model, epoch after epoch
  until there are enough; sources that draw windows draw one for each.
  """
  source = sources.load_source(config, 'train')
  count, total = recipe['count'], recipe['count'] * recipe['repeats']
  epochs = range(-(-total // len(source)))
  orders = [
    np.random.default_rng([0, e]).permutation(len(source)) for e in epochs
  ]
  order = np.concatenate(orders)[:total]
  view = getattr(source, 'view', None)

  def read(place: int) -> dict[str, Any]:
    index = int(order[place])
    if view:
      return view(index, np.random.default_rng([1, place]))
    return source[index]

  found, labels = [], []
  for first in range(0, total, count):
    moments, places = Moments(), range(first, first + count)
    for clips, of_clips in in_parts(read, places, _PART):
      moments.add(network(clips))
      labels.append(of_clips)
    found.append(moments.read())
  return Reference(found, count, np.concatenate(labels), recipe)


def write(path: epath.PathLike, reference: Reference) -> None:
  """Writes an .npz that `read` reads."""
  mean, covariance = zip(*reference.moments, strict=True)
  with files.replacing(path) as temporary, temporary.open('wb') as file:
    np.savez(
      file,
      mu=np.stack(mean),
      sigma=np.stack(covariance),
      count=reference.count,
      labels=reference.labels,
      recipe=json.dumps(reference.recipe),
    )


def read(path: epath.PathLike) -> Reference:
  """The reference of a file.

  Raises:
    ValueError: if the file is missing, damaged, or of something else.
  """
  if not epath.Path(path).is_file():
    raise ValueError(f'--reference: there is no file {path}.')
  found = files.read_npz(path)
  if missing := {'mu', 'sigma'} - set(found):
    raise ValueError(
      f'{path} has the arrays {sorted(found)}, and lacks {sorted(missing)}.'
    )
  mean, covariance = found['mu'], found['sigma']
  if mean.ndim == 1:
    mean, covariance = mean[None], covariance[None]
  for name, value, axes in (('mu', mean, 1), ('sigma', covariance, 2)):
    expected = (*mean.shape[:1], *(CLASSES,) * axes)
    if (
      value.shape != expected
      or value.dtype.kind != 'f'
      or not np.isfinite(value).all()
    ):
      raise ValueError(
        f'{path}: {name} is {found[name].dtype} {found[name].shape}; expected '
        f'finite numbers, {(CLASSES,) * axes} or {("repeats", *expected[1:])}.'
      )
  count, labels = found.get('count'), found.get('labels')
  try:
    recipe = json.loads(str(found.get('recipe', '{}')))
    count = None if count is None else int(count)
    if not isinstance(recipe, dict):
      raise ValueError(f'its recipe is {recipe}')
    if labels is not None and (
      labels.dtype.kind not in 'iu'
      or labels.shape != (len(mean) * (count or 0),)
    ):
      raise ValueError(
        f'it has {labels.dtype} {labels.shape} labels of {len(mean)} x {count} '
        'clips'
      )
  except (ValueError, TypeError) as e:
    raise ValueError(f'{path} is damaged: {e}.') from e
  moments = list(zip(mean.astype(np.float64), covariance.astype(np.float64)))
  return Reference(moments, count, labels, recipe)
