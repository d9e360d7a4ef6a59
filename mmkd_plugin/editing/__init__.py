"""Changes to configs: distillation added to one, a recipe's training, a student's plain form."""
