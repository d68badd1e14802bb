"""Speech recognisers: speech in, text out. They are the systems that a trained head is compared with."""
