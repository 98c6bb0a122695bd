import math

import numpy as np
import pytest

from model.confidence import DECODER_SHARE, Calibration, with_confidences
from model.transcript import Word

HEARD = [Word("so", 0.0, 0.2, 0.9), Word("be", 0.2, 0.5, 0.1), Word("it", 0.5, 0.7, 1.0)]
LOGPROBS = [math.log(0.5), 0.0, -math.inf]  # a word may be impossible to the decoder


def test_a_confidence_is_the_mean_of_what_decoder_and_ctc_head_say():
    words = with_confidences(HEARD, LOGPROBS, None)
    rest = 1 - DECODER_SHARE
    expected = [0.5 * DECODER_SHARE + 0.9 * rest, DECODER_SHARE + 0.1 * rest, rest]
    assert [word.confidence for word in words] == pytest.approx(expected)
    assert [(w.word, w.start, w.end) for w in words] == [(w.word, w.start, w.end) for w in HEARD]


def test_a_calibration_applies_to_the_mean():
    calibration = Calibration(1.5, 0.4)
    mean = np.array([word.confidence for word in with_confidences(HEARD, LOGPROBS, None)])
    words = with_confidences(HEARD, LOGPROBS, calibration)
    assert [word.confidence for word in words] == pytest.approx(calibration(mean).tolist())


def test_no_words_have_no_confidences():
    assert with_confidences([], [], Calibration(1.0, 0.0)) == ()
