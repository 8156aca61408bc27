"""Quality of generators, measured as the field's tables do.

metrics     PSNR and SSIM by MATLAB's protocol
spectrum    power by frequency beside the original's
validation  held-out patches while training
test_sets   HR pictures with their LR
evaluate    models and baselines on test sets: the rows of Table 1
tables      rows as Markdown and CSV
row_labels  short, distinct names of models
comparison  sheets of LR, each model, HR and error maps
"""
