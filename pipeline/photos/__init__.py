"""Which photos a data set is made of.

walk             sources: folders and URLs
scan             known layouts, train and val, names
official         published LR images of a data set
accept           reasons to refuse a photo
near_duplicates  perceptual hashes and groups of similar photos
"""
