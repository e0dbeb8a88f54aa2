"""A trained model at work: decoding in O(1) a token, and the language model that joins it with its tokenizer."""
