"""Everything that walks along a denoiser, whoever it is: noise levels, samplers, seeds."""
