"""mPLUG-Owl2 for current transformers; imports nothing else of evoprompt. Importing it registers the Auto classes."""

from evoprompt.owl2.configuration import Owl2Config
from evoprompt.owl2.modeling import Owl2ForConditionalGeneration, Owl2Model
from evoprompt.owl2.processing import Owl2ImageProcessor, Owl2Processor, load_owl2, register
from evoprompt.owl2.sharing import Beginning
from evoprompt.owl2.tokenization import Owl2Tokenizer

__all__ = [
    "Beginning",
    "Owl2Config",
    "Owl2ForConditionalGeneration",
    "Owl2ImageProcessor",
    "Owl2Model",
    "Owl2Processor",
    "Owl2Tokenizer",
    "load_owl2",
    "register",
]

register()
