"""The parts of train_draft: an EAGLE draft head, trained on its target's own answers.

Users never need them: the trained draft is in the package (pd_eagle/demo/draft).
"""
