"""One answer: the fields of a chat completion, the extracted text, tokens and cost."""
