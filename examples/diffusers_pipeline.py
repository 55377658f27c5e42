"""A pipeline, random or of a FOLDER, without its prompts. Prints its skip: skip 5 of 20, 0.022"""

import sys

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

from edm.adapters.diffusers import suggested_skip, teleported
from linear_structure import Spectral


def run(x):
    return pipe(latents=x, num_images_per_prompt=len(x), num_inference_steps=20, **told).images


torch.manual_seed(0)
of = {"block_out_channels": (8,), "norm_num_groups": 4, "cross_attention_dim": 8}
net = UNet2DConditionModel(8, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], **of)
scheduler = DPMSolverMultistepScheduler(prediction_type="sample", steps_offset=1)
pipe = StableDiffusionPipeline(None, None, None, net, scheduler, None, None, None, False)
none = dict.fromkeys(["vae", "text_encoder", "tokenizer", "safety_checker"])
for folder in sys.argv[1:]:
    pipe = pipe.from_pretrained(folder, local_files_only=True, use_safetensors=True, **none)
told = {"prompt_embeds": torch.ones(1, 2, pipe.unet.config.cross_attention_dim)}
told |= {"guidance_scale": 1.0, "output_type": "latent"}
noise, *others = torch.randn(17, 16, 4, *[pipe.unet.config.sample_size] * 2)
gaussian, whole = Spectral.from_samples(torch.cat([*map(run, others)]), low=4), run(noise)
*_, best = suggested_skip(pipe, gaussian, run, steps=20, noise=noise)
with teleported(pipe, gaussian, steps=20, skip=best.skip, noise=noise) as latents:
    print(f"skip {best.skip} of 20, {(run(latents) - whole).std() / whole.std():.3f}")
