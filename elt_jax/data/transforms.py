"""Pixel range, and augmentation seeded by Grain from an example's position."""

from typing import Any

import grain
import numpy as np


def to_unit_range(images: Any) -> Any:
  """uint8 0..255 -> float32 in [-1, 1], numpy or jax; floats as they are."""
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 127.5 - 1
  return images.astype(np.float32)


def to_zero_one(images: Any) -> Any:
  """uint8 0..255 or float in [-1, 1] -> float32 in [0, 1], for tokenizers."""
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 255
  return (images.astype(np.float32) + 1) / 2


class RandomFlip(grain.transforms.RandomMap):
  """Mirrors an image, or a whole clip, with probability one half."""

  def random_map(
    self, element: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    if rng.random() < 0.5:
      return element
    # The width is the last axis but one: [h, w, c] or [f, h, w, c].
    return element | {
      'image': np.ascontiguousarray(element['image'][..., ::-1, :])
    }


def training(config: Any) -> list[grain.transforms.RandomMap]:
  """The augmentations of an experiment config, in order."""
  return [RandomFlip()] if config.data.flip else []
