"""PDS lab: sampling pretrained score-based generative models fast, without retraining."""

__version__ = "0.1.0"
