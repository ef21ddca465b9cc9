"""What trains the exits: ILSD, vanilla looping, deep supervision, no looping.

    python launch/sweep.py --sweep=configs/sweeps/mnist_ablation.py \\
        --workdir=runs/ablation

Four runs of configs/mnist_diffusion.py at equal compute per step: the looped
models apply 2 layers 4 times, the unlooped one has 8 layers of its own.
"""

CONFIG = 'configs/mnist_diffusion.py'
# Past L_max = 4 too: extrapolation is part of the comparison.
LOOPS = '1,2,3,4,6,8'


def get_sweep() -> list[dict]:
  """One {'name', 'overrides'[, 'loops']} per run."""
  return [
    {'name': 'ilsd', 'overrides': {'objective.exits': 'ilsd'}},
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
