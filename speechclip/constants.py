"""Rates and a status that every part agrees on."""

SAMPLE_RATE = 16000  # Hz, of all speech
HOP = 320  # samples a frame: the product of HuBERT's convolution strides, 5 * 2**6
FRAME_RATE = SAMPLE_RATE // HOP  # Hz
FRAME_SECONDS = HOP / SAMPLE_RATE

# Exit status of a run that was asked to stop, has saved, and goes on when started again: EX_TEMPFAIL of sysexits.h
STOPPED = 75
