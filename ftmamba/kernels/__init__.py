"""Compiled kernels for CPUs, as custom operators of torch: the Mamba layer, the selective scan."""
