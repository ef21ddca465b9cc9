"""Layouts of the id table, and the ids of the neighbours."""

import numpy as np
import pytest

from elt_jax.models.vocabulary import Vocabulary


def test_maskgit_ids():
  """Class c is 1024 + c; the mask, -1 there, is the last of 2025 rows."""
  v = Vocabulary('codebook|classes|mask', 1024, 1000)
  assert v.size == 2025 and v.mask_id == 2024 and not v.has_null
  np.testing.assert_array_equal(v.class_ids(np.array([0, 999])), [1024, 2023])


def test_titok_ids():
  """Mask K, class K + 1 + c, dropped label K + 1 + C, of K + C + 2."""
  v = Vocabulary('codebook|mask|classes|null', 1024, 1000)
  assert v.size == 2026 and v.mask_id == 1024
  np.testing.assert_array_equal(
    v.class_ids(np.array([0, 999, 1000])), [1025, 2024, 2025]
  )


def test_magvit_size():
  """UCF-101, one task: 1024 + 102 + 1."""
  assert Vocabulary('codebook|classes|null|mask', 1024, 101).size == 1127
  many = Vocabulary('codebook|classes|null|reserved:15|mask', 1024, 101)
  assert many.size == 1142 and many.mask_id == 1141


def test_the_class_stands_in_front():
  v = Vocabulary('codebook|classes|null|mask', 8, 3)
  tokens = np.array([[1, 2], [3, v.mask_id]])
  got = v.sequence(tokens, np.array([2, 3]))
  np.testing.assert_array_equal(got, [[10, 1, 2], [11, 3, 12]])


@pytest.mark.parametrize(
  'layout',
  [
    'classes|codebook|mask',
    'codebook|classes',
    'codebook|classes|mask|mask',
    'codebook|classes|mask|masks',
    'codebook|classes|mask|reserved',
    'codebook|classes:3|mask',
    '',
  ],
)
def test_layouts_that_make_no_sense(layout):
  with pytest.raises(ValueError, match='model.vocabulary'):
    Vocabulary(layout, 8, 2)
