"""A reference of FID made of the training set, in the format of `evals.adm`.

As OpenAI's are: the moments of all of it, and 10,000 of its images, for
precision and recall. The suite of guided-diffusion reads it too.
"""

import contextlib
from typing import Any

from etils import epath
import jax
import numpy as np

from elt_jax import hosts
from elt_jax.data import sources
from elt_jax.evals import adm
from elt_jax.evals.frechet import Moments
from elt_jax.evals.resume import check_same
from elt_jax.evals.training_set import in_parts

NAME = 'fid-train.npz'
REMEDY = 'Move it away, or leave --reference out, to make one.'
_KEPT, _PART = 10_000, 1024


def seen_as(pixels: Any, inception: str) -> dict[str, Any]:
  """What images and reference must have in common.

  Args:
    pixels: config of the data set of images.
    inception: fingerprint of the network.
  """
  return {'image_size': pixels.data.image_size, 'inception': inception}


def make_recipe(pixels: Any, inception: str) -> dict[str, Any]:
  """Of which images it is, and how they were seen.

  Raises:
    ValueError: if the data set is not known, as of public weights.
  """
  if not pixels.data.source:
    raise ValueError(
      'The images this model was trained on are not here to measure against: '
      'give a --reference.'
    )
  which = {'source': pixels.data.source, 'split': 'train'}
  return which | seen_as(pixels, inception)


def found(path: epath.PathLike, recipe: dict[str, Any]) -> adm.Reference | None:
  """What was made before, or None.

  Raises:
    ValueError: if it was made otherwise.
  """
  if not epath.Path(path).exists():
    return None
  reference = adm.Reference(path)
  check_same(path, reference.recipe(), recipe, REMEDY)
  return reference


def make(
  path: epath.PathLike, pixels: Any, recipe: dict[str, Any], network: Any
) -> adm.Reference:
  """Writes the moments and images of the training set, on host 0.

  Args:
    path: of the file.
    pixels: config of the data set of images.
    recipe: of `make_recipe`.
    network: features of images.
  """
  source = sources.load_source(pixels, 'train')
  order = np.random.default_rng(0).permutation(len(source))
  kept = min(_KEPT, len(source))
  moments = {'pool': Moments(), 'spatial': Moments()}
  seen = 0
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      file = stack.enter_context(adm.writing(path, kept))
    for images, _ in in_parts(lambda i: source[i], order, _PART):
      features = network(images)
      for name, of_name in moments.items():
        of_name.add(getattr(features, name))
      if jax.process_index() == 0 and seen < kept:
        file.add(images[: kept - seen])
      seen += len(images)
    if jax.process_index() == 0:
      file.describe({name: m.read() for name, m in moments.items()}, recipe)
  hosts.once('reference', lambda: None)
  return adm.Reference(path)
