"""Loss functions of both stages.

pixel        L1 (eq. 1)
content      distance of VGG-19 features (eq. 2), and the weights of VGG-19
adversarial  five kinds of GAN loss (eq. 3, 4) and the R1 penalty
"""
