"""The networks as the papers describe them: plain modules that know no configuration and no acceleration.

layers                layers that several networks share, and how they start
rrdb                  RRDBNet, the paper's generator
srresnet, srcnn       generators of the paper's comparisons
discriminators        VGG, U-Net and patch discriminators
feature_extractors    VGG-19 for the content loss; AlexNet and VGG-16 for perceptual metrics
fold_batch_norm       batch normalisation folded into convolutions

`trainer.training.acceleration` replaces some of their layers by fused forms of the same function.
"""
