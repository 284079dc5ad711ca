"""Reproduce a table or figure of the papers: printed, measured, difference.

python experiments/reproduce.py table=ncsnpp_cifar10 small=true
PDS_CHECKPOINTS=/checkpoints python experiments/reproduce.py table=clean_fid seeds=[0,1,2] hydra/launcher=joblib
"""

from __future__ import annotations

from pds.lab.cli import start
from pds.lab.tables import reproduce

if __name__ == "__main__":
    start(reproduce)
