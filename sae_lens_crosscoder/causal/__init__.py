"""What latents do: their contributions carried from one model into the other, removed, scaled or added."""
