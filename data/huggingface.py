"""The former name of `data.hf_tokenizer`."""

from data.hf_tokenizer import HuggingFaceTokenizer as HuggingFace

__all__ = ["HuggingFace"]
