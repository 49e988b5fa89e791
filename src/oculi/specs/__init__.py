"""The parts that a recipe is written with, by what they say; `oculi.recipe` has them all."""
