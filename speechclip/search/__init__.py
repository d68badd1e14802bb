"""Search by voice: an index of image embeddings, spoken queries to it, and a local page to ask on."""
