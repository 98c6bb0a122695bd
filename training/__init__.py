"""Everything that makes a better recognizer: data, training, evaluation, packaging."""
