"""One answer: the fields of a chat completion, the text without its wrapping, tokens and cost."""
