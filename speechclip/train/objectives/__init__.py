"""Further training objectives, off by default: queue, momentum model, distillation, hard negatives, denoising."""
