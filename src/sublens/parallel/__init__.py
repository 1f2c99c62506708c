"""One task on many slices: in this process, on several, on a Dask cluster, under torchrun."""
