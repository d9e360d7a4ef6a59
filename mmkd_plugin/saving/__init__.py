"""What a checkpoint of a distilled run holds, and what is done to keep one that can be used."""
