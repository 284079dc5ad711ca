"""The experiment framework on top of the library: configurations, runs, sweeps, trackers and reports."""
