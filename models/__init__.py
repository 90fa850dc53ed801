"""What a checkpoint is: architectures (one file per ``model_type``), loaders, tokenizers."""
