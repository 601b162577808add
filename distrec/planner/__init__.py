"""`distrec plan`: what a model takes of a cluster that need not be there, and the ways out where it does not fit."""
