"""How well a model hears: answers to questions about recordings with known truth, beside chance."""
