"""A tokenizer of clips that starts from a tokenizer of images.

MAGVIT (arXiv 2212.05199, section 3.1) inflates the convolutions of a trained
2-D network along time; everything else has the same shape and is copied.
"""

from typing import Any

from flax import traverse_util
import numpy as np


def inflate(params: Any, like: Any, mode: str) -> Any:
  """Parameters of a tokenizer of clips, from those of a tokenizer of images.

  Args:
    params: of the tokenizer of images, {'encoder', 'quantizer', 'decoder'}.
    like: shapes of the tokenizer of clips; its critic stays out.
    mode: 'central' puts a kernel into the middle of the new axis, between
      zeros: every frame is convolved by itself; 'average' repeats it, divided
      by the length of the axis: three frames that are equal are convolved as
      one.

  Raises:
    ValueError: naming an array that is not there or has no such shape.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  parts = {part: like[part] for part in ('encoder', 'quantizer', 'decoder')}
  wanted = traverse_util.flatten_dict(parts, sep='/')
  found = {}
  for name in sorted(flat.keys() | wanted.keys()):
    here, there = (
      tuple(tree[name].shape) if name in tree else () for tree in (flat, wanted)
    )
    if here and here == there:
      found[name] = np.asarray(flat[name])
    elif len(there) == 5 and here == there[1:]:
      found[name] = _along_time(np.asarray(flat[name]), there[0], mode)
    else:
      raise ValueError(
        f'tokenizer.inflate_from: {name} is {here or "nothing"} in the '
        f'tokenizer of images, which does not inflate to {there or "nothing"}: '
        'filters, multipliers, blocks, codes, channels, patch and '
        'local_encoder must be the same.'
      )
  return traverse_util.unflatten_dict(found, sep='/')


def _along_time(kernel: np.ndarray, length: int, mode: str) -> np.ndarray:
  """[kh, kw, c, d] -> [length, kh, kw, c, d]."""
  if mode == 'average':
    return np.repeat(kernel[None] / length, length, 0)
  inflated = np.zeros((length, *kernel.shape), kernel.dtype)
  inflated[length // 2] = kernel
  return inflated
