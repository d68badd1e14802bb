"""Search images by voice: an index of image embeddings, spoken queries, and a local web page."""
