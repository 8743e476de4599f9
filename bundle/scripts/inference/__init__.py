"""Windows over an image, the sums of what they say, and the way of finished planes back to the image's own grid."""
