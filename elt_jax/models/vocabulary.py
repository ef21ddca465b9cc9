"""One table of ids for codes, classes and special tokens, laid out as data.

A layout names the segments of the table in order, as in
'codebook|classes|null|mask':

    codebook    the tokenizer's codes; always first, so that a code is its id
    classes     one id per class: the token in front of the sequence
    null        the class of unconditional passes
    mask        what stands at positions to be predicted
    reserved:n  n rows without a use here

Layouts of the field: MaskGIT 'codebook|classes|mask' (its id -1 wraps to the
last row); MAGVIT 'codebook|classes|null|mask', with 'reserved:15' before the
mask in multi-task models; TiTok and Halton-MaskGIT
'codebook|mask|classes|null'.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Ids of a layout.

  Attributes:
    layout: segments in order, separated by '|'.
    codebook_size: number of codes.
    num_classes: number of classes.

  Raises:
    ValueError: on an unknown or repeated segment, or one that is missing:
      'codebook' must come first, 'classes' and 'mask' anywhere after it.
  """

  layout: str
  codebook_size: int
  num_classes: int

  def __post_init__(self):
    names = [name.split(':')[0] for name in self.layout.split('|')]
    known = ('codebook', 'classes', 'null', 'mask', 'reserved')
    if (
      names[0] != 'codebook'
      or not {'classes', 'mask'} <= set(names) <= set(known)
      or len(set(names)) < len(names)
    ):
      raise ValueError(
        "model.vocabulary must be segments as in 'codebook|classes|null|mask', "
        f'codebook first, each of {known} once; got {self.layout!r}.'
      )
    _ = self.segments  # Raises on a bad size.

  @property
  def segments(self) -> dict[str, tuple[int, int]]:
    """Name -> (first id, number of ids)."""
    sizes = {
      'codebook': self.codebook_size,
      'classes': self.num_classes,
      'null': 1,
      'mask': 1,
    }
    found, start = {}, 0
    for part in self.layout.split('|'):
      name, _, count = part.partition(':')
      if (name == 'reserved') != count.isdecimal():
        raise ValueError(
          "model.vocabulary: 'reserved' takes a number of rows, as in "
          f"'reserved:15', and no other segment does; got {part!r}."
        )
      size = int(count) if count else sizes[name]
      found[name] = (start, size)
      start += size
    return found

  @property
  def size(self) -> int:
    """Rows of the table."""
    return sum(size for _, size in self.segments.values())

  @property
  def mask_id(self) -> int:
    return self.segments['mask'][0]

  @property
  def has_null(self) -> bool:
    """Whether there is a class for unconditional passes."""
    return 'null' in self.segments

  def class_ids(self, labels: Array) -> Array:
    """Labels -> ids; num_classes is the null class, where there is one."""
    ids = self.segments['classes'][0] + labels
    if not self.has_null:
      return ids
    return jnp.where(labels == self.num_classes, self.segments['null'][0], ids)

  def sequence(self, tokens: Array, labels: Array) -> Array:
    """int32 [b, s] ids and [b] labels -> [b, 1 + s], the class in front."""
    return jnp.concatenate([self.class_ids(labels)[:, None], tokens], 1)


def build_vocabulary(config: Any) -> Vocabulary:
  """The vocabulary of an experiment config."""
  return Vocabulary(
    config.model.vocabulary,
    config.tokenizer.codebook_size,
    config.data.num_classes,
  )
