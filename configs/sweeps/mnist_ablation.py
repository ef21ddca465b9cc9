"""What trains the exits: ILSD, at a random depth too, or not; no looping.

    python launch/sweep.py --sweep=configs/sweeps/mnist_ablation.py \\
        --workdir=runs/ablation

Five runs of configs/mnist_diffusion.py: the looped models apply 2 layers 4
times (2 to 4 times at random depth), the unlooped one has 8 layers of its own.
"""

CONFIG = 'configs/mnist_diffusion.py'
# Past L_max = 4 too: extrapolation is part of the comparison.
LOOPS = '1,2,3,4,6,8'


def get_sweep() -> list[dict]:
  """One {'name', 'overrides'[, 'loops']} per run."""
  return [
    {'name': 'ilsd', 'overrides': {'objective.exits': 'ilsd'}},
    {'name': 'random_depth', 'overrides': {'objective.randomize_max_loops': 2}},
    {'name': 'vanilla', 'overrides': {'objective.exits': 'none'}},
    {'name': 'deep_supervision', 'overrides': {'objective.exits': 'all'}},
    {
      'name': 'unlooped',
      'overrides': {
        'objective.exits': 'none',
        'model.num_layers': 8,
        'model.max_loops': 1,
      },
      'loops': '1',
    },
  ]
