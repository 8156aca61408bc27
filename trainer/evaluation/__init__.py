"""Quality of generators, measured as in the tables of published papers.

metrics     PSNR and SSIM by MATLAB's protocol
spectrum    spectral power relative to HR
validation  scores on held-out patches during training
test_sets   HR images with their LR
evaluate    scores of models and baselines on test sets: the rows of Table 1
tables      rows as Markdown and CSV
row_labels  short, unique names of models
comparison  sheets of LR, each model, HR and error maps
"""
