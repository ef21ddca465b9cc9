"""ILSD against vanilla looping in a masked model of clips.

    make video
    python launch/sweep.py --sweep=configs/sweeps/moving_mnist_ablation.py \\
        --workdir=runs/moving_mnist_ablation

Two runs of configs/moving_mnist_masked.py, on the tokens that `make video`
leaves in runs/moving_mnist_tokens.
"""

CONFIG = 'configs/moving_mnist_masked.py'
LOOPS = '1,2,3,4,6'


def get_sweep() -> list[dict]:
  """One {'name', 'overrides'[, 'loops']} per run."""
  return [
    {'name': 'ilsd', 'overrides': {'objective.exits': 'ilsd'}},
    {'name': 'vanilla', 'overrides': {'objective.exits': 'none'}},
  ]
