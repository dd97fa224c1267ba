"""How well generators draw: prompts, drawn images, and what is computed of them."""
