"""Measures of what a backbone has learned.

``images``        training and test images, with labels or without
``features``      representations of images by a frozen backbone
``probes``        k-NN and linear classifiers on them
``finetune``      a copy of the backbone trained with a classifier, on a share of the labels
``augmentations`` how well features tell how views were made
``ranks``         how many dimensions are in use
``views``         how a method sees the views that it was trained on
``evaluate``      all of these as rows of tables
``measure``       an evaluation apart from training

Beside these: ``ridge`` (regression), ``scores`` (of predictions), ``subsets`` (of images).
"""
