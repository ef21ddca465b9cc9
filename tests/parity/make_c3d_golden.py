"""The C3D of pfnet-research/tgan2 by Chainer's own layers: goldens/c3d.npz.

    python tests/parity/make_c3d_golden.py weights DIR   # this project's Python
    python tests/parity/make_c3d_golden.py golden DIR    # Chainer's

Chainer 7.8.1 wants numpy below 1.24, and setuptools below 66 to be installed:
a virtual environment of its own. It reads the random weights by its own reader
of .npz files, so that the names are Chainer's too.
"""

import pathlib
import sys

import numpy as np

TESTS = pathlib.Path(__file__).resolve().parent.parent


def write_weights(directory: pathlib.Path) -> None:
  sys.path[:0] = [str(TESTS.parent), str(TESTS)]
  from helpers import c3d_weights

  found = c3d_weights()
  np.savez(directory / 'mean.npz', mean=found.pop('mean'))
  np.savez(directory / 'weights.npz', **found)


def write_golden(directory: pathlib.Path) -> None:
  import chainer
  from chainer import functions as F
  from chainer import links as L

  class C3D(chainer.Chain):
    """Its layers by their names."""

    def __init__(self):
      super().__init__()
      channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
      names = ['1a', '2a', '3a', '3b', '4a', '4b', '5a', '5b']
      with self.init_scope():
        for name, before, out in zip(names, channels, channels[1:]):
          layer = L.ConvolutionND(3, before, out, 3, 1, 1)
          setattr(self, f'conv{name}', layer)
        self.fc6 = L.Linear(512 * 4 * 4, 4096)
        self.fc7 = L.Linear(4096, 4096)
        self.fc8 = L.Linear(4096, 101)

  model = C3D()
  chainer.serializers.load_npz(str(directory / 'weights.npz'), model)
  mean = np.load(directory / 'mean.npz')['mean'][:, :, 8:120, 8:120]
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (2, 16, 24, 20, 3)).astype(np.uint8)
  # To channels first and -1..1; then to blue, green, red.
  x = clips.transpose(0, 4, 1, 2, 3).astype(np.float32) / 127.5 - 1
  x = np.ascontiguousarray(128 * x[:, ::-1])
  n, c, f, h, w = x.shape
  x = F.resize_images(
    x.transpose(0, 2, 1, 3, 4).reshape(-1, c, h, w), (112, 112)
  )
  x = x.reshape(n, f, c, 112, 112).transpose(0, 2, 1, 3, 4) + (128 - mean)
  with chainer.using_config('train', False), chainer.no_backprop_mode():
    x = F.max_pooling_nd(F.relu(model.conv1a(x)), (1, 2, 2))
    x = F.max_pooling_nd(F.relu(model.conv2a(x)), 2)
    for level in (3, 4, 5):
      for part in 'ab':
        x = F.relu(model[f'conv{level}{part}'](x))
      x = F.max_pooling_nd(x, 2)
    x = F.relu(model.fc7(F.relu(model.fc6(x))))
    probabilities = F.softmax(model.fc8(x)).array
  path = TESTS / 'goldens' / 'c3d.npz'
  np.savez_compressed(path, clips=clips, probabilities=probabilities)


if __name__ == '__main__':
  step, directory = sys.argv[1], pathlib.Path(sys.argv[2])
  {'weights': write_weights, 'golden': write_golden}[step](directory)
