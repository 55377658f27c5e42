"""The learned half: networks, preconditioning, sampling, training, scoring (Karras et al. 2022)."""
