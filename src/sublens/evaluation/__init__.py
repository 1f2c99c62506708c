"""How good a trained network is: scores, explanations, detection limits."""
