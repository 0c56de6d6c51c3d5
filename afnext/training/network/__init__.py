"""What is learnt by what: objectives, adapters, optimizers, what a step costs."""
