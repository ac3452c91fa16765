"""What several losses share: checks of inputs, contrasts of views, centers, memory banks."""
