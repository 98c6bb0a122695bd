"""The recognizer: audio in, transcript out. It knows neither the server nor the trainer."""
