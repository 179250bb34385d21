"""The embedded demo model: corpus, tokenizer, training, GGUF, evaluation, model card."""
