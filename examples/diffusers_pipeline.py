"""A pipeline of diffusers, yours of `from_pretrained`, here small and random: its first steps are a
teleport. Prints how many can be, and how far latents are then from those of all steps (RMS of their
spread): skip 5 of 20, 0.026"""

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

from edm.adapters.diffusers import suggested_skip, teleported
from linear_structure import Gaussian

torch.manual_seed(0)
size = {"block_out_channels": (8,), "norm_num_groups": 4, "cross_attention_dim": 8}
unet = UNet2DConditionModel(
    8, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], **size
)
scheduler = DPMSolverMultistepScheduler(prediction_type="sample", steps_offset=1)
pipe = StableDiffusionPipeline(None, None, None, unet, scheduler, None, None, None, False)
told = {"prompt_embeds": torch.ones(1, 2, 8), "guidance_scale": 1.0, "output_type": "latent"}


def run(x):
    return pipe(latents=x, num_images_per_prompt=len(x), num_inference_steps=20, **told).images


others, noise = torch.randn(256, 4, 8, 8), torch.randn(16, 4, 8, 8)
gaussian, whole = Gaussian.from_samples(run(others)), run(noise)
*_, best = suggested_skip(pipe, gaussian, run, steps=20, noise=noise)
with teleported(pipe, gaussian, steps=20, skip=best.skip, noise=noise) as latents:
    far = (run(latents) - whole).square().mean() / whole.var(0).mean()
print(f"skip {best.skip} of 20, {far.sqrt():.3f}")
