"""Small classifiers: the features of `fd_lenet` and `fd_c3d`, and accuracy.

One for images and one for clips, trained deterministically, in seconds and in
minutes, on the training split of the embedded data, and cached under a name
made of everything that determines them. They are no Inception and no I3D: the
distances over their features are called `fd_lenet` and `fd_c3d` and nothing
else, and compare models of this project with one another.
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
from elt_jax.tokenizers.layers import conv

Array = jax.Array
log = logging.getLogger(__name__)

# Everything but the data that determines the weights, by network.
RECIPES = {
  'lenet': {
    'version': 1,
    'epochs': 8,
    'batch_size': 50,
    'peak_learning_rate': 3e-3,
    'max_shift': 2,
    'seed': 0,
  },
  'c3d': {
    'version': 1,
    'epochs': 8,
    'batch_size': 50,
    'peak_learning_rate': 3e-3,
    'max_shift': 0,
    'seed': 0,
  },
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


class C3D(nn.Module):
  """Two strided convolutions, one over all three axes, the greatest of each.

  The first is a 4 x 5 x 5 convolution of stride (4, 2, 2): the frames it
  takes together are its channels.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """[b, f, h, w, c] in [-1, 1] -> (features [b, 84], logits [b, classes])."""
    b, f, h, w, c = x.shape
    fill = ((0, 0), (0, -f % 4), (0, 0), (0, 0), (0, 0))
    x = jnp.pad(x, fill, 'edge')
    x = x.reshape(b, -1, 4, h, w, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(-1, h, w, 4 * c)
    x = nn.relu(nn.Conv(16, (5, 5), strides=2)(x))
    x = nn.relu(nn.Conv(48, (5, 5), strides=2)(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(conv(96, (3, 3, 3))(x.reshape(b, -1, *x.shape[1:])))
    features = nn.relu(nn.Dense(84)(x.max((1, 2, 3))))
    return features, nn.Dense(self.num_classes)(features)


NETWORKS = {'lenet': LeNet, 'c3d': C3D}


class Classifier:
  """A trained network.

  Attributes:
    accuracy: share of the held-out split it classifies right.
  """

  def __init__(self, model: nn.Module, params: Any, test: ArraySource):
    self._apply = jax.jit(lambda x: model.apply({'params': params}, x))
    _, predicted = self(test.images)
    self.accuracy = float(np.mean(predicted == test.labels))

  def __call__(
    self, images: np.ndarray, batch_size: int = 500
  ) -> tuple[np.ndarray, np.ndarray]:
    """uint8, or float in [-1, 1], [n, ...] -> (features [n, 84], classes [n]).

    Floats are rounded to 8 bits first, as a file would hold them.
    """
    features, classes = [], []
    for start in range(0, len(images), batch_size):
      x = to_unit_range(images[start : start + batch_size])
      x = np.rint((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1
      f, logits = self._apply(x.astype(np.float32))
      features.append(np.asarray(f))
      classes.append(np.argmax(logits, -1))
    return np.concatenate(features), np.concatenate(classes)


def load_or_train(
  name: str, train: ArraySource, test: ArraySource, num_classes: int
) -> Classifier:
  """The classifier of this data: from the cache, or trained and cached.

  `name` is 'lenet', of images, or 'c3d', of clips.

  The cache is $ELT_JAX_CACHE or ~/.cache/elt_jax; a file that cannot be read
  is made again.
  """
  model = NETWORKS[name](num_classes)
  recipe = RECIPES[name] | {'num_classes': num_classes}
  digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
  for array in (train.images, train.labels):
    digest.update(str((array.shape, array.dtype)).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  root = os.environ.get('ELT_JAX_CACHE', '~/.cache/elt_jax')
  path = (
    pathlib.Path(root).expanduser() / f'{name}-{digest.hexdigest()[:16]}.npz'
  )
  try:
    params = traverse_util.unflatten_dict(files.read_npz(path), sep='/')
  except (OSError, ValueError):
    log.info('Training the %s of the metrics, once; kept in %s.', name, path)
    params = _train(model, RECIPES[name], train)
    with files.replacing(path) as temporary:
      np.savez(temporary, **traverse_util.flatten_dict(params, sep='/'))
  return Classifier(model, params, test)


def _train(
  model: nn.Module, recipe: dict[str, Any], source: ArraySource
) -> Any:
  """Adam with a one-cycle schedule, on batches shifted by a few pixels."""
  images, labels = (
    jnp.asarray(to_unit_range(source.images)),
    jnp.asarray(source.labels),
  )
  n, batch_size = len(labels), min(recipe['batch_size'], len(labels))
  per_epoch = n // batch_size
  num_steps = recipe['epochs'] * per_epoch
  optimizer = optax.adam(
    optax.cosine_onecycle_schedule(num_steps, recipe['peak_learning_rate'])
  )
  key = jax.random.key(recipe['seed'])
  params = nn.unbox(model.init(key, images[:1])['params'])

  def loss_fn(params: Any, x: Array, y: Array) -> Array:
    _, logits = model.apply({'params': params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Any, opt_state: Any, index: Array, i: Array):
    limit = recipe['max_shift']
    shift = jax.random.randint(
      jax.random.fold_in(key, i), (2,), -limit, limit + 1
    )
    x = jnp.roll(images[index], shift, (-3, -2))
    grads = jax.grad(loss_fn)(params, x, labels[index])
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  rng = np.random.default_rng(recipe['seed'])
  for i in range(num_steps):
    if i % per_epoch == 0:
      order = rng.permutation(n)
    start = i % per_epoch * batch_size
    index = order[start : start + batch_size]
    params, opt_state = step(params, opt_state, index, i)
  return jax.device_get(params)
