"""Pipeline: photos to LR/HR patch pairs in tar shards, `prep-shards`.

options   what decides the bytes of a data set, checked
scan      which photos there are, in which published layout
walk      folders and stores, in order, for what looks like photos
patches   one photo to its patch pairs
similar   photos that look alike: copies, mirrored ones, test pictures
spill     the patch pairs of a few photos on scratch, sorted by rank
plan      split, order and shards of the whole data set
pool      processes that may die without taking the run along
folder    the output folder: empty, unfinished, finished, or somebody else's
prepare   the run: scan, cut, plan, pack, publish; goes on where a killed one stopped
doctor    whether this installation is whole and fast: `prep-shards --doctor`
cli       `prep-shards`
"""
