"""Does a clip move, and as one thing? A measure that needs no network.

Between two frames, find the displacement of at most an eighth of the side by
which the first becomes most like the second, by the similarity
2 <a, b> / (|a|^2 + |b|^2) of their brightness: 1 where they are equal, less
where they differ in shape or in brightness. A step from one displacement to
the next is motion if

* both times the frames are alike: their similarity is at least `ALIKE`;
* something moves: the two displacements are not both zero;
* it moves on: the two differ by at most one pixel along each axis.

The measure is the share of such steps, in [0, 1]. A frozen clip has none, for
nothing moves; frames in random order and jitter have few, for nothing moves
on; clips that flicker, fade or change what they show have few, for their frames
are not alike. Real digits lose the steps at which they turn at a wall, so their
own measure stands beside every result; two digits that move apart lose most.
It is made for things on a dark ground, and says little of filmed scenes.
"""

import numpy as np

# A digit and itself, between pixels and blurred by a tokenizer, are above it.
ALIKE = 0.8


def consistency(clips: np.ndarray) -> np.ndarray:
  """[n, f, h, w, c] in [-1, 1] -> [n], the measure of each clip.

  Raises:
    ValueError: if there are fewer than three frames.
  """
  if clips.shape[1] < 3:
    raise ValueError(
      f'Motion is measured over three frames or more, not {clips.shape[1]}.'
    )
  moves, similarity = displacements((clips.mean(-1) + 1) / 2)
  alike = (similarity[:, 1:] >= ALIKE) & (similarity[:, :-1] >= ALIKE)
  moved = moves[:, 1:].any(-1) | moves[:, :-1].any(-1)
  on = np.abs(moves[:, 1:] - moves[:, :-1]).max(-1) <= 1
  return (alike & moved & on).mean(1)


def displacements(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How each frame is best moved onto the next.

  Args:
    clips: [n, f, h, w] brightness in [0, 1].

  Returns:
    (moves, similarity): int [n, f - 1, 2], along h and w, and [n, f - 1], of
    the frames once moved; 0 where both are black.
  """
  n, f, h, w = clips.shape
  reach = max(min(h, w) // 8, 1)
  before = np.pad(clips[:, :-1], ((0, 0), (0, 0), (reach,) * 2, (reach,) * 2))
  after = clips[:, 1:]
  size = np.square(after).sum((2, 3))
  best, moves = np.zeros((n, f - 1)), np.zeros((n, f - 1, 2), int)
  # Small moves first: of equal ones, the smallest is taken.
  steps = range(-reach, reach + 1)
  for dy, dx in sorted(
    ((dy, dx) for dy in steps for dx in steps), key=np.linalg.norm
  ):
    moved = before[:, :, reach - dy :, reach - dx :][:, :, :h, :w]
    product = np.einsum('nfhw,nfhw->nf', moved, after)
    sizes = np.einsum('nfhw,nfhw->nf', moved, moved) + size
    similarity = 2 * product / np.maximum(sizes, 1e-8)
    better = similarity > best + 1e-6
    best = np.where(better, similarity, best)
    moves[better] = dy, dx
  return moves, best
