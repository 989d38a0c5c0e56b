"""Training of every part of the model: `recipes.STAGES` lists the stages."""
