"""How good a pipeline's images are: their distance from those of a data set."""
