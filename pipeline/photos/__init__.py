"""Selection of the photos of a data set.

walk             recursive listing of folders and stores
scan             published layouts, train and val, names
official         official LR images of a data set
accept           acceptance of one photo
near_duplicates  perceptual hashes and groups of near-duplicates
"""
