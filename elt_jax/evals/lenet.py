"""A small digit classifier: the features of `fd_lenet`, and class accuracy.

Trained deterministically in seconds on the training split of the embedded
data, and cached under a name made of everything that determines it. It is no
Inception: the distance over its features is called `fd_lenet` and nothing
else, and compares models of this project with one another.
"""

import functools
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from elt_jax import files
from elt_jax.data.sources import ArraySource
from elt_jax.data.transforms import to_unit_range

Array = jax.Array
log = logging.getLogger(__name__)

# Everything but the data that determines the weights.
RECIPE = {
  'version': 1,
  'epochs': 8,
  'batch_size': 50,
  'peak_learning_rate': 3e-3,
  'max_shift': 2,
  'seed': 0,
}


class LeNet(nn.Module):
  """Two strided convolutions and two dense layers."""

  num_classes: int

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """[b, h, w, c] in [-1, 1] -> (features [b, 84], logits [b, classes])."""
    x = nn.relu(nn.Conv(16, (5, 5), strides=2)(x))
    x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
    features = nn.relu(nn.Dense(84)(x.reshape(x.shape[0], -1)))
    return features, nn.Dense(self.num_classes)(features)


class Classifier:
  """A trained LeNet.

  Attributes:
    accuracy: share of the held-out split it classifies right.
  """

  def __init__(self, params: Any, num_classes: int, test: ArraySource):
    model = LeNet(num_classes)
    self._apply = jax.jit(lambda x: model.apply({'params': params}, x))
    _, predicted = self(to_unit_range(test.images))
    self.accuracy = float(np.mean(predicted == test.labels))

  def __call__(
    self, images: np.ndarray, batch_size: int = 500
  ) -> tuple[np.ndarray, np.ndarray]:
    """float [n, h, w, c] in [-1, 1] -> (features [n, 84], classes [n]).

    Images are rounded to 8 bits first, as a file would hold them.
    """
    images = np.rint((np.clip(images, -1, 1) + 1) * 127.5) / 127.5 - 1
    features, classes = [], []
    for start in range(0, len(images), batch_size):
      f, logits = self._apply(
        images[start : start + batch_size].astype(np.float32)
      )
      features.append(np.asarray(f))
      classes.append(np.argmax(logits, -1))
    return np.concatenate(features), np.concatenate(classes)


def load_or_train(
  train: ArraySource, test: ArraySource, num_classes: int
) -> Classifier:
  """The classifier of this data: from the cache, or trained and cached.

  The cache is $ELT_JAX_CACHE or ~/.cache/elt_jax; a file that cannot be read
  is made again.
  """
  recipe = RECIPE | {'num_classes': num_classes}
  digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
  for array in (train.images, train.labels):
    digest.update(str((array.shape, array.dtype)).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  root = os.environ.get('ELT_JAX_CACHE', '~/.cache/elt_jax')
  path = (
    pathlib.Path(root).expanduser() / f'lenet-{digest.hexdigest()[:16]}.npz'
  )
  try:
    params = traverse_util.unflatten_dict(files.read_npz(path), sep='/')
  except (OSError, ValueError):
    log.info('Training the LeNet of the metrics, once; kept in %s.', path)
    params = _train(train, num_classes)
    with files.replacing(path) as temporary:
      np.savez(temporary, **traverse_util.flatten_dict(params, sep='/'))
  return Classifier(params, num_classes, test)


def _train(source: ArraySource, num_classes: int) -> Any:
  """Adam with a one-cycle schedule, on batches shifted by a few pixels."""
  model = LeNet(num_classes)
  images, labels = (
    jnp.asarray(to_unit_range(source.images)),
    jnp.asarray(source.labels),
  )
  n, batch_size = len(labels), min(RECIPE['batch_size'], len(labels))
  per_epoch = n // batch_size
  num_steps = RECIPE['epochs'] * per_epoch
  optimizer = optax.adam(
    optax.cosine_onecycle_schedule(num_steps, RECIPE['peak_learning_rate'])
  )
  key = jax.random.key(RECIPE['seed'])
  params = model.init(key, images[:1])['params']

  def loss_fn(params: Any, x: Array, y: Array) -> Array:
    _, logits = model.apply({'params': params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Any, opt_state: Any, index: Array, i: Array):
    limit = RECIPE['max_shift']
    shift = jax.random.randint(
      jax.random.fold_in(key, i), (2,), -limit, limit + 1
    )
    x = jnp.roll(images[index], shift, (1, 2))
    grads = jax.grad(loss_fn)(params, x, labels[index])
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  rng = np.random.default_rng(RECIPE['seed'])
  for i in range(num_steps):
    if i % per_epoch == 0:
      order = rng.permutation(n)
    start = i % per_epoch * batch_size
    index = order[start : start + batch_size]
    params, opt_state = step(params, opt_state, index, i)
  return jax.device_get(params)
