"""ILSD against vanilla looping in a masked model.

    make masked
    python launch/sweep.py --sweep=configs/sweeps/mnist_masked_ablation.py \\
        --workdir=runs/masked_ablation

Two runs of configs/mnist_masked.py, on the tokens that `make masked` leaves in
runs/mnist_tokens.
"""

CONFIG = 'configs/mnist_masked.py'
LOOPS = '1,2,3,4,6'


def get_sweep() -> list[dict]:
  """One {'name', 'overrides'[, 'loops']} per run."""
  return [
    {'name': 'ilsd', 'overrides': {'objective.exits': 'ilsd'}},
    {'name': 'vanilla', 'overrides': {'objective.exits': 'none'}},
  ]
