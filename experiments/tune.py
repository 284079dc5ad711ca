"""Find the sampler, its filter and its steps for a network: an answer for each number of evaluations.

python experiments/tune.py model=ncsnpp_small budgets=[10,20,50] trials=40 images=256
python experiments/run.py recommendation=outputs/tune/ncsnpp_small/recommendation.yaml budget=20
"""

from __future__ import annotations

from pds.lab.cli import start
from pds.lab.tuning.search import tune

if __name__ == "__main__":
    start(tune)
