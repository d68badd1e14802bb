"""Constants that several parts of the project share."""

SAMPLE_RATE = 16000  # Hz, of all speech
HOP = 320  # samples per frame: the product of HuBERT's convolution strides, 5 * 2**6
FRAME_RATE = SAMPLE_RATE // HOP  # frames per second
FRAME_SECONDS = HOP / SAMPLE_RATE

# Exit status of a run that saved its work after SIGTERM and resumes when started again: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75

# Files of encoder folders: open_clip's format, and that of transformers.
CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
ENCODER_CONFIG, PREPROCESSOR_CONFIG = "config.json", "preprocessor_config.json"

# The folder of a run's scores, and its files of scores. eval/score_files.py reads and writes them.
SCORES, RETRIEVAL, KEYWORDS, CONDITIONS = "scores", "retrieval.json", "keywords.json", "conditions.json"
SPOTTING = "spotting.json"
