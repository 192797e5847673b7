"""Running a masked diffusion model: masks, Monte Carlo likelihood, samplers."""
