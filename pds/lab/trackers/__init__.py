"""One tracker a file, each behind the interface of `pds.lab.tracking`. Its packages are imported when a run is opened."""
