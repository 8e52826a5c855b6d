"""How a training is going: where its time goes, whether its numbers are sound, and what somebody should be told."""
