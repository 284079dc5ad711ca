"""Sample a model with and without PDS, measure the distance to the data, and compare.

python experiments/run.py filter=parametric filter.r=0.2 filter.lam=1.6 sampler.iterations=20
python experiments/run.py -m filter=none,statistics sampler.iterations=20,50
torchrun --nproc-per-node=2 experiments/run.py filter=statistics images=50000
python experiments/run.py recommendation=outputs/tune/ncsnpp_small/recommendation.yaml budget=20
"""

from __future__ import annotations

from pds.lab.cli import configured, start
from pds.lab.sweep import run_or_point
from pds.lab.tuning.recommendation import recommended

if __name__ == "__main__":
    start(recommended(configured("run", run_or_point)))
