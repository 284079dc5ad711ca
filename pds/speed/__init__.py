"""The speed of sampling on this machine, and the best that the machine can do."""
