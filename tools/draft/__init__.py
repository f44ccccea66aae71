"""The parts of train_draft: an EAGLE draft head, trained on its target's own answers."""
