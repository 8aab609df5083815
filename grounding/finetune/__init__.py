"""Fine-tuning on Lightning: targets, losses, data, the training module, and ``finetune``, which runs them."""
