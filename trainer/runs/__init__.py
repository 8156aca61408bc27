"""A run: stages one after the other in one run folder, which a stopped or killed run resumes.

train       a whole `train-sr`
preflight   every check before the first step
stage       one stage from its checkpoint to its end
session     what a run and a stage are asked to do
resume      state to start or resume from, and rollback
checkpoint  `last`, best and final weights on disk
best        which weights are the best
writer      everything that is written while training
log         run header, epoch rows, progress notes
"""
